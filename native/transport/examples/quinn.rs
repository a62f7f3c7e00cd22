//! quinn without Python: the limit that our transport is compared with. `quinn listen`, or `quinn bench ADDR CONNECTS OPENS BULK_BYTES
//! [MESSAGE_BYTES ROUNDS]…`; says what it measured in the words of `node/bench/ends.py`. Windows, MTU and ciphers are those of our transport;
//! who is who is not checked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use libp2p_identity::Keypair;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, MtuDiscoveryConfig, RecvStream, SendStream, TransportConfig, VarInt};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use swarmnode_transport::limits;
use tokio::io::AsyncReadExt;

const PONG: u8 = b'p';
const SINK: u8 = b's';
const PIECE_BYTES: usize = 1 << 20;

/// Takes any certificate.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC has no TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    provider.cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn transport() -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(limits::MAX_UDP_PAYLOAD_BYTES);
    let mut config = TransportConfig::default();
    config
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES)
        .mtu_discovery_config(Some(mtu));
    Arc::new(config)
}

async fn pong(send: &mut SendStream, receive: &mut RecvStream) -> Option<()> {
    let mut message = Vec::new();
    loop {
        let mut head = [0; 8];
        receive.read_exact(&mut head).await.ok()?;
        message.resize(8 + usize::try_from(u64::from_le_bytes(head)).ok()?, 0);
        message[..8].copy_from_slice(&head);
        receive.read_exact(&mut message[8..]).await.ok()?;
        send.write_all(&message).await.ok()?;
    }
}

async fn sink(send: &mut SendStream, receive: &mut RecvStream) -> Option<()> {
    let mut left = receive.read_u64_le().await.ok()?;
    let mut scratch = vec![0; PIECE_BYTES];
    while left > 0 {
        left -= receive.read(&mut scratch).await.ok()?? as u64;
    }
    send.write_all(&[1]).await.ok()
}

async fn serve() {
    let (certificate, key) = libp2p_tls::certificate::generate(&Keypair::generate_ed25519()).unwrap();
    let provider = provider();
    let key = provider.key_provider.load_private_key(key).unwrap();
    let shown = SingleCertAndKey::from(CertifiedKey::new(vec![certificate], key));
    let crypto = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(crypto).unwrap()));
    config.transport_config(transport());
    let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    println!("{{\"event\": \"listening\", \"addrs\": [\"{}\"]}}", endpoint.local_addr().unwrap());
    while let Some(incoming) = endpoint.accept().await {
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                tokio::spawn(async move {
                    match receive.read_u8().await {
                        Ok(PONG) => pong(&mut send, &mut receive).await,
                        Ok(SINK) => sink(&mut send, &mut receive).await,
                        _ => None,
                    }
                });
            }
        });
    }
}

async fn open(connection: &Connection, what: u8) -> (SendStream, RecvStream) {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    send.write_all(&[what]).await.unwrap();
    (send, receive)
}

/// Seconds that a message takes there and back.
async fn trip(send: &mut SendStream, receive: &mut RecvStream, message: &mut [u8], answer: &mut [u8]) -> f64 {
    let length = (message.len() - 8) as u64;
    message[..8].copy_from_slice(&length.to_le_bytes());
    let begun = Instant::now();
    send.write_all(message).await.unwrap();
    receive.read_exact(answer).await.unwrap();
    begun.elapsed().as_secs_f64()
}

async fn bench(addr: SocketAddr, numbers: &[usize]) {
    let [connects, opens, bulk_bytes, messages @ ..] = numbers else { panic!("what is to be measured?") };
    let provider = provider();
    let verifier = Anybody(provider.signature_verification_algorithms);
    let mut crypto = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    crypto.resumption = rustls::client::Resumption::disabled();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
    config.transport_config(transport());
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();

    let mut seconds = Vec::new();
    let mut newest = None;
    for _ in 0..*connects {
        let begun = Instant::now();
        newest = Some(endpoint.connect_with(config.clone(), addr, "l").unwrap().await.unwrap());
        seconds.push(begun.elapsed().as_secs_f64());
    }
    say("connect", 0, &seconds);
    let connection = newest.expect("at least one connection");

    seconds.clear();
    for _ in 0..*opens {
        let begun = Instant::now();
        let (mut send, mut receive) = open(&connection, PONG).await;
        trip(&mut send, &mut receive, &mut [0; 9], &mut [0; 9]).await;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    say("open", 0, &seconds);

    let (mut send, mut receive) = open(&connection, SINK).await;
    let piece = vec![0; PIECE_BYTES];
    let begun = Instant::now();
    send.write_all(&(*bulk_bytes as u64).to_le_bytes()).await.unwrap();
    for _ in 0..bulk_bytes / PIECE_BYTES {
        send.write_all(&piece).await.unwrap();
    }
    receive.read_u8().await.unwrap();
    say("bulk", *bulk_bytes, &[begun.elapsed().as_secs_f64()]);

    let (mut send, mut receive) = open(&connection, PONG).await;
    for pair in messages.chunks_exact(2) {
        let (mut message, mut answer) = (vec![0; 8 + pair[0]], vec![0; 8 + pair[0]]);
        seconds.clear();
        for _ in 0..pair[1] {
            seconds.push(trip(&mut send, &mut receive, &mut message, &mut answer).await);
        }
        say("pong", pair[0], &seconds);
    }
    println!("{{\"event\": \"done\"}}");
}

fn say(event: &str, bytes: usize, seconds: &[f64]) {
    println!("{{\"event\": \"{event}\", \"bytes\": {bytes}, \"seconds\": {seconds:?}}}");
}

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match given.first().map(String::as_str) {
        Some("listen") => runtime.block_on(serve()),
        Some("bench") => {
            let numbers: Vec<usize> = given[2..].iter().map(|text| text.parse().unwrap()).collect();
            runtime.block_on(bench(given[1].parse().unwrap(), &numbers));
        }
        _ => {
            panic!("usage: quinn listen | quinn bench ADDR CONNECTS OPENS BULK_BYTES [MESSAGE_BYTES ROUNDS]…")
        }
    }
}
