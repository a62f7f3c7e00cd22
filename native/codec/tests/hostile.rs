//! Bytes from anybody: a million inputs, most of them blobs with something changed and the checksum made to fit again, so
//! that what is behind it is reached. Nothing panics, nothing outside the output is written, nothing large is allocated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // may fail loudly

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;
use std::mem::discriminant;
use support::{DTYPES, Random, made, written};
use swarmnode_codec::{CodecError, Dtype, Scheme, decode_into, inspect};

const INPUTS: usize = 1_000_000;
/// Decoding takes no memory at all. zstd's context, which it makes once a thread and of a fixed size, is not Rust's.
const MOST_ALLOCATED_BYTES: usize = 0;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

// SAFETY: everything is passed on to the system's allocator.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// CRC-32C a byte at a time.
fn sealed(blob: &mut [u8], table: &[u32; 256]) {
    let mut crc = !0u32;
    let covered = blob[..28].iter().chain(&blob[32..]);
    covered.for_each(|byte| crc = crc >> 8 ^ table[usize::from(crc as u8 ^ byte)]);
    blob[28..32].copy_from_slice(&(!crc).to_le_bytes());
}

fn table() -> [u32; 256] {
    std::array::from_fn(|byte| {
        (0..8).fold(byte as u32, |crc, _| crc >> 1 ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let mut blobs = Vec::new();
    for scheme in Scheme::ALL {
        for dtype in DTYPES {
            for (rows, cols) in [(1, 8), (2, 64), (3, 70), (1, 130), (0, 3)] {
                for group in if matches!(scheme, Scheme::E4m3 | Scheme::E5m2) { vec![0, 64] } else { vec![0] }
                {
                    blobs.push(written(scheme, group, 0, &made(dtype, rows, cols, 0, 1).source()));
                }
            }
            blobs.push(written(scheme, 0, 1, &made(dtype, 2, 600, 0, 1).source()));
        }
    }
    blobs
}

/// One to three bytes changed, mostly in the header and the small sections behind it; sometimes cut or grown.
fn spoiled(seed: &[u8], random: &mut Random, table: &[u32; 256]) -> Vec<u8> {
    let mut blob = seed.to_vec();
    for _ in 0..=random.below(3) {
        let reach = if random.below(3) == 0 { 32 } else { blob.len() as u64 };
        let at = random.below(reach) as usize;
        blob[at] = match random.below(4) {
            0 => 0,
            1 => 0xFF,
            2 => blob[at] ^ 1 << random.below(8),
            _ => random.bits() as u8,
        };
    }
    match random.below(20) {
        0 => blob.truncate(random.below(blob.len() as u64 + 1) as usize),
        1 => blob.extend((0..random.below(70)).map(|_| random.bits() as u8)),
        _ => {}
    }
    if blob.len() >= 32 && random.below(8) != 0 {
        sealed(&mut blob, table);
    }
    blob
}

#[test]
fn a_million_inputs_are_decoded_or_refused() {
    let (table, seeds, mut random) = (table(), seeds(), Random(4));
    let mut room = vec![0x77u8; 4 * 64 * 1024];
    let (mut reasons, mut decoded) = (HashSet::new(), 0);
    for input in 0..INPUTS {
        let blob = if input % 16 == 0 {
            (0..random.below(100)).map(|_| random.bits() as u8).collect()
        } else {
            spoiled(&seeds[random.below(seeds.len() as u64) as usize], &mut random, &table)
        };
        let header = inspect(&blob);
        let (rows, cols) = header.map_or((2, 3), |header| (header.rows.into(), header.cols.into()));
        let dtype = DTYPES[random.below(3) as usize];
        let bytes = (rows * cols) as usize * dtype.bytes();
        if bytes + 1 > room.len() {
            // Behind zstd few bytes may honestly be many values. They are decoded where so many are expected, only.
            let refused = decode_into(&blob, dtype, 2, 3, &mut room[..6 * dtype.bytes()]);
            assert!(matches!(refused, Err(CodecError::WrongShape { .. })));
            continue;
        }
        room[bytes] = 0x77;
        LARGEST.set(0);
        let result = decode_into(&blob, dtype, rows, cols, &mut room[..bytes]);
        assert_eq!(LARGEST.get(), MOST_ALLOCATED_BYTES);
        assert_eq!(room[bytes], 0x77);
        match result {
            Ok(()) => decoded += 1,
            Err(reason) => drop(reasons.insert(discriminant(&reason))),
        }
        if let Err(reason) = header {
            assert_eq!(result, Err(reason));
        }
    }
    assert!(decoded > INPUTS / 20, "only {decoded} were decoded");
    assert!(reasons.len() >= 14, "only {} reasons to refuse were seen", reasons.len());
}

#[test]
fn a_plane_of_zeros_that_claims_to_be_endless_is_refused() {
    // A frame of 128 KiB of one byte, again and again: 4 bytes become 128 KiB each.
    let mut bomb = vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0x58];
    (0..2000).for_each(|_| bomb.extend([0x02, 0x00, 0x10, 0x00]));
    bomb.extend([0x03, 0x00, 0x10, 0x00]);
    let (rows, cols) = (200u32, 600u32);
    let mut blob = b"SWC\x01\x01\x02\x01\x00".to_vec();
    [rows, cols, 0, bomb.len() as u32, 0, 0].iter().for_each(|field| blob.extend(field.to_le_bytes()));
    blob.resize(64, 0);
    blob.extend(&bomb);
    blob.resize(blob.len().next_multiple_of(64) + (rows * cols) as usize, 0);
    sealed(&mut blob, &table());
    let mut out = vec![0; (rows * cols) as usize * 2];
    LARGEST.set(0);
    let result = decode_into(&blob, Dtype::Bf16, rows.into(), cols.into(), &mut out);
    assert_eq!(result, Err(CodecError::BadPlane));
    assert_eq!(LARGEST.get(), MOST_ALLOCATED_BYTES);
}

#[test]
fn each_lie_has_its_own_reason() {
    let honest = written(Scheme::H6, 0, 0, &made(Dtype::Bf16, 2, 70, 0, 1).source());
    let float = written(Scheme::E4m3, 0, 0, &made(Dtype::Bf16, 2, 70, 0, 1).source());
    let changed = |blob: &[u8], changes: &[(usize, u8)]| {
        let mut blob = blob.to_vec();
        changes.iter().for_each(|(at, byte)| blob[*at] = *byte);
        sealed(&mut blob, &table());
        support::decoded(&blob, Dtype::Bf16, 2, 70).unwrap_err()
    };
    let columns = 192;
    assert_eq!(changed(&honest, &[(0, b'X')]), CodecError::NotACodec);
    assert_eq!(changed(&honest, &[(3, 2)]), CodecError::UnknownVersion(2));
    assert_eq!(changed(&honest, &[(4, 7)]), CodecError::UnknownScheme(7));
    assert_eq!(changed(&honest, &[(5, 3)]), CodecError::UnknownDtype(3));
    assert_eq!(changed(&honest, &[(6, 1)]), CodecError::BadFlags(1));
    assert_eq!(changed(&honest, &[(7, 1)]), CodecError::NotZero { offset: 7 });
    assert_eq!(changed(&honest, &[(16, 64)]), CodecError::BadGroup { scheme: Scheme::H6, group: 64 });
    assert_eq!(changed(&honest, &[(24, 1)]), CodecError::NotZero { offset: 24 });
    assert_eq!(changed(&honest, &[(33, 1)]), CodecError::NotZero { offset: 33 });
    assert!(matches!(changed(&honest, &[(8, 3)]), CodecError::WrongLength { .. }));
    assert!(matches!(changed(&honest, &[(12, 7)]), CodecError::WrongScheme { .. }));
    assert_eq!(changed(&honest, &[(65, 0xFF)]), CodecError::BadScale);
    assert_eq!(changed(&honest, &[(64, 1), (65, 0)]), CodecError::BadScale);
    assert_eq!(changed(&honest, &[(128, 0x80), (129, 0x7F)]), CodecError::BadOutlier);
    assert_eq!(changed(&honest, &[(columns + 6, 70)]), CodecError::BadOutlierColumn { row: 0 });
    assert_eq!(changed(&honest, &[(columns + 8, 69)]), CodecError::BadOutlierColumn { row: 1 });
    assert_eq!(changed(&float, &[(128, 0x7F)]), CodecError::BadFloatCode(Scheme::E4m3));
    assert_eq!(
        changed(&float, &[(6, 1), (20, 140)]),
        CodecError::BadPlaneLength { plane: 140, compressed: 140 }
    );

    let mut torn = honest.clone();
    torn[200] ^= 1;
    assert_eq!(support::decoded(&torn, Dtype::Bf16, 2, 70), Err(CodecError::BadChecksum));
    assert!(matches!(support::decoded(&honest, Dtype::Bf16, 70, 2), Err(CodecError::WrongShape { .. })));
    let mut small = [0; 100];
    let refused = decode_into(&honest, Dtype::Bf16, 2, 70, &mut small);
    assert_eq!(refused, Err(CodecError::BadOutput { needed: 280, given: 100 }));
}
