//! A rust-libp2p peer for swarmnode's tests: `listen ADDR`, or `dial ADDR`; says what happens in lines of JSON, as the peer in Go does.
//!
//! `listen` serves echo and half until standard input ends; `dial` does identify, ping, an echo of 5 MiB and a half-close.

use std::error::Error;
use std::time::Duration;

use futures::future::{Either, select};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol, Swarm, identify, identity, noise, ping, tcp, yamux};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

const ECHO: StreamProtocol = StreamProtocol::new("/swarmnode/interop/echo/1");
const HALF: StreamProtocol = StreamProtocol::new("/swarmnode/interop/half/1");
const ECHO_BYTES: usize = 5 << 20;
const HALF_BYTES: usize = 100_000;
const PATIENCE: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

#[derive(NetworkBehaviour)]
struct Peer {
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    streams: libp2p_stream::Behaviour,
}

fn say(line: Value) {
    println!("{line}");
}

fn new_swarm() -> Result<Swarm<Peer>, Failure> {
    let swarm = libp2p::SwarmBuilder::with_existing_identity(identity::Keypair::generate_ed25519())
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, yamux::Config::default)?
        .with_quic()
        .with_behaviour(|key| Peer {
            identify: identify::Behaviour::new(identify::Config::new(
                "swarmnode-interop/1".into(),
                key.public(),
            )),
            ping: ping::Behaviour::default(),
            streams: libp2p_stream::Behaviour::new(),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build();
    Ok(swarm)
}

/// Sends back what comes while it comes, and ends when the other end has.
async fn echo(mut stream: Stream) -> std::io::Result<()> {
    let mut piece = vec![0; 1 << 16];
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return stream.close().await;
        }
        stream.write_all(&piece[..count]).await?;
    }
}

/// Waits for the end of what is sent, then answers with how much it was and the same bytes backwards.
async fn half(mut stream: Stream) -> std::io::Result<()> {
    let mut taken = Vec::new();
    (&mut stream).take(2 * ECHO_BYTES as u64).read_to_end(&mut taken).await?;
    stream.write_all(&backwards(taken)).await?;
    stream.close().await
}

fn backwards(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.reverse();
    let mut answer = format!("{}\n", bytes.len()).into_bytes();
    answer.append(&mut bytes);
    answer
}

async fn listen(addr: Multiaddr) -> Result<(), Failure> {
    let mut swarm = new_swarm()?;
    let mut control = swarm.behaviour().streams.new_control();
    let mut echoes = control.accept(ECHO)?;
    let mut halves = control.accept(HALF)?;
    tokio::spawn(async move {
        while let Some((_, stream)) = echoes.next().await {
            tokio::spawn(echo(stream));
        }
    });
    tokio::spawn(async move {
        while let Some((_, stream)) = halves.next().await {
            tokio::spawn(half(stream));
        }
    });
    swarm.listen_on(addr)?;
    let mut input = tokio::io::stdin();
    let ends = async move { while input.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {} };
    let runs = async move {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => {
                    let peer = *swarm.local_peer_id();
                    let addr = address.with(Protocol::P2p(peer));
                    say(json!({"event": "listening", "peer": peer.to_string(), "addrs": [addr.to_string()]}));
                }
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    say(json!({"event": "connected", "peer": peer_id.to_string()}));
                }
                _ => {}
            }
        }
    };
    let (ends, runs) = (std::pin::pin!(ends), std::pin::pin!(runs));
    let (Either::Left(_) | Either::Right(_)) = select(ends, runs).await;
    Ok(())
}

async fn dial(addr: Multiaddr) -> Result<(), Failure> {
    let Some(Protocol::P2p(other)) = addr.iter().last() else {
        return Err("the address names no peer".into());
    };
    let mut swarm = new_swarm()?;
    let control = swarm.behaviour().streams.new_control();
    swarm.dial(addr)?;
    let (mut identified, mut pinged) = (false, false);
    while !(identified && pinged) {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                say(json!({"event": "connected", "peer": peer_id.to_string()}));
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => {
                return Err(format!("connect: {error:?}").into());
            }
            SwarmEvent::ConnectionClosed { cause, .. } => return Err(format!("closed: {cause:?}").into()),
            SwarmEvent::Behaviour(PeerEvent::Identify(identify::Event::Received { info, .. })) => {
                identified = true;
                let protocols: Vec<_> = info.protocols.iter().map(ToString::to_string).collect();
                say(json!({"event": "identified", "protocols": protocols, "agent": info.agent_version}));
            }
            SwarmEvent::Behaviour(PeerEvent::Ping(ping::Event { result, .. })) => {
                pinged = true;
                say(json!({"event": "pinged", "seconds": result?.as_secs_f64()}));
            }
            _ => {}
        }
    }
    let runs = async move {
        loop {
            swarm.select_next_some().await;
        }
    };
    let asks = ask(control, other);
    match select(std::pin::pin!(asks), std::pin::pin!(runs)).await {
        Either::Left((result, _)) => result,
        Either::Right(((), _)) => Ok(()),
    }
}

async fn ask(mut control: libp2p_stream::Control, other: PeerId) -> Result<(), Failure> {
    let payload: Vec<u8> = (0..ECHO_BYTES).map(|at| (at * at / 7 + at) as u8).collect();
    let stream = control.open_stream(other, ECHO).await?;
    let (mut reads, mut writes) = stream.split();
    let sent = payload.clone();
    let send = tokio::spawn(async move {
        writes.write_all(&sent).await?;
        writes.close().await
    });
    let mut answer = Vec::new();
    reads.read_to_end(&mut answer).await?;
    send.await??;
    say(json!({"event": "echoed", "bytes": answer.len(), "equal": answer == payload}));

    // Half-close: all is said and ended before the first byte is read.
    let mut stream = control.open_stream(other, HALF).await?;
    let said = payload[..HALF_BYTES].to_vec();
    stream.write_all(&said).await?;
    stream.close().await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    say(json!({"event": "halved", "bytes": answer.len(), "equal": answer == backwards(said)}));
    say(json!({"event": "done"}));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [what, addr] = given.as_slice() else {
        eprintln!("usage: peer listen ADDR | peer dial ADDR");
        std::process::exit(2);
    };
    let addr = addr.parse().expect("a multiaddr");
    let result = match what.as_str() {
        "listen" => listen(addr).await,
        _ => tokio::time::timeout(PATIENCE, dial(addr))
            .await
            .unwrap_or_else(|_| Err("was not done in time".into())),
    };
    if let Err(error) = result {
        say(json!({"event": "failed", "what": what, "why": error.to_string()}));
        std::process::exit(1);
    }
}
