package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// What node/bench/ends.py measures, said in its words: 8 bytes of length before each message, bulk until the end.
const (
	pongID = protocol.ID("/swarmnode/bench/pong/1")
	sinkID = protocol.ID("/swarmnode/bench/sink/1")
)

// pong sends each message back as soon as it is whole.
func pong(stream network.Stream) {
	defer stream.Close()
	head := make([]byte, 8)
	body := []byte{}
	for {
		if _, err := io.ReadFull(stream, head); err != nil {
			return
		}
		length := binary.LittleEndian.Uint64(head)
		if uint64(cap(body)) < length+8 {
			body = make([]byte, length+8)
		}
		message := body[:length+8]
		copy(message, head)
		if _, err := io.ReadFull(stream, message[8:]); err != nil {
			return
		}
		if _, err := stream.Write(message); err != nil {
			return
		}
	}
}

// sink reads to the end and answers with one byte.
func sink(stream network.Stream) {
	defer stream.Close()
	if _, err := io.Copy(io.Discard, stream); err == nil {
		stream.Write([]byte{1})
	}
}

func serveBench(opened host.Host) {
	opened.SetStreamHandler(pongID, pong)
	opened.SetStreamHandler(sinkID, sink)
}

// bench takes CONNECTS OPENS BULK_BYTES, then pairs of a message's bytes and how many to send.
func bench(addr string, arguments []string) {
	numbers := []int{}
	for _, text := range arguments {
		number, err := strconv.Atoi(text)
		if err != nil {
			fail("arguments", err)
		}
		numbers = append(numbers, number)
	}
	if len(numbers) < 3 {
		fail("arguments", errors.New("what is to be measured?"))
	}
	ctx := context.Background()
	var opened host.Host
	var other peer.ID
	connects := []float64{}
	for range numbers[0] {
		if opened != nil {
			opened.Close()
		}
		opened = newHost()
		begun := time.Now()
		other = connect(ctx, opened, addr)
		connects = append(connects, time.Since(begun).Seconds())
	}
	defer opened.Close()
	say("connect", map[string]any{"seconds": connects})

	opens := []float64{}
	for range numbers[1] {
		begun := time.Now()
		stream, err := opened.NewStream(ctx, other, pongID)
		if err != nil {
			fail("open", err)
		}
		trip(stream, make([]byte, 9), make([]byte, 9))
		opens = append(opens, time.Since(begun).Seconds())
		stream.Close()
	}
	say("open", map[string]any{"seconds": opens})

	stream, err := opened.NewStream(ctx, other, sinkID)
	if err != nil {
		fail("bulk", err)
	}
	piece := make([]byte, 1<<20)
	begun := time.Now()
	for sent := 0; sent < numbers[2]; sent += len(piece) {
		if _, err := stream.Write(piece); err != nil {
			fail("bulk", err)
		}
	}
	stream.CloseWrite()
	if _, err := io.ReadFull(stream, make([]byte, 1)); err != nil {
		fail("bulk", err)
	}
	say("bulk", map[string]any{"bytes": numbers[2], "seconds": []float64{time.Since(begun).Seconds()}})

	stream, err = opened.NewStream(ctx, other, pongID)
	if err != nil {
		fail("pong", err)
	}
	for at := 3; at+1 < len(numbers); at += 2 {
		message := make([]byte, 8+numbers[at])
		answer := make([]byte, len(message))
		trips := []float64{}
		for range numbers[at+1] {
			trips = append(trips, trip(stream, message, answer))
		}
		say("pong", map[string]any{"bytes": numbers[at], "seconds": trips})
	}
	say("done", nil)
}

// trip is the time a message takes there and back.
func trip(stream network.Stream, message, answer []byte) float64 {
	binary.LittleEndian.PutUint64(message, uint64(len(message)-8))
	begun := time.Now()
	if _, err := stream.Write(message); err != nil {
		fail("pong", err)
	}
	if _, err := io.ReadFull(stream, answer); err != nil {
		fail("pong", err)
	}
	return time.Since(begun).Seconds()
}
