//! Clients that open HTTP/2 streams and reset them at once, as fast as they can (CVE-2023-44487): they are sent away, and
//! everybody else is served.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::cluster::{Cluster, Process};

const ENHANCE_YOUR_CALM: u32 = 11;
/// What a part may hold more of after many floods: what its allocator keeps, not what a flood leaves.
const GROWTH: u64 = 32 << 20;

/// RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A call's head, in HPACK's literals without indexing (RFC 7541, section 6.2.2).
fn head(path: &str) -> Vec<u8> {
    let literal = |name: &[u8], value: &str| [name, &[value.len() as u8], value.as_bytes()].concat();
    // :method POST and :scheme http stand in the static table whole; :path, :authority and content-type by name.
    let names = [literal(&[0x04], path), literal(&[0x01], "localhost"), literal(&[0x0f, 0x10], "application/grpc")];
    [vec![0x83, 0x86], names.concat()].concat()
}

/// Opens streams to `path` and resets each at once, until the server says why it has had enough.
async fn flood(address: &str, path: &str) -> u32 {
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let write = async {
        writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        writer.write_all(&frame(0x4, 0, 0, &[])).await?;
        let head = head(path);
        for first in (1_u32..).step_by(200) {
            let streams = (first..first + 200).step_by(2);
            let opened = streams.map(|id| [frame(0x1, 0x4, id, &head), frame(0x3, 0, id, &8_u32.to_be_bytes())]);
            writer.write_all(&opened.flatten().flatten().collect::<Vec<u8>>()).await?;
        }
        std::io::Result::Ok(())
    };
    let read = async {
        loop {
            let mut head = [0; 9];
            reader.read_exact(&mut head).await?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            reader.read_exact(&mut payload).await?;
            if let (0x7, [_, _, _, _, a, b, c, d, ..]) = (head[3], payload.as_slice()) {
                return std::io::Result::Ok(u32::from_be_bytes([*a, *b, *c, *d]));
            }
        }
    };
    // Writing ends where the server has closed; what it said before that is still to be read.
    let (_, code) = tokio::join!(write, read);
    code.expect("a word before the end")
}

async fn endures(cluster: &Cluster, served: &Process, (flooded, port): (&Process, &str), path: &str) {
    assert_eq!(flood(flooded.address(port), path).await, ENHANCE_YOUR_CALM);
    let before = flooded.resident();
    let floods = async {
        for _ in 0..30 {
            assert_eq!(flood(flooded.address(port), path).await, ENHANCE_YOUR_CALM);
        }
    };
    cluster.under_load(&[served], floods).await;
    let after = flooded.resident();
    assert!(after < before + GROWTH, "{before} bytes became {after}");
}

#[tokio::test]
async fn who_opens_and_resets_streams_is_sent_away_and_others_are_served() {
    let cluster = Cluster::start();
    let router = cluster.router("r1", &[]);
    let worker = cluster.worker("w1", &[]);
    cluster.members(&router, "ready", 1).await;
    endures(&cluster, &router, (&router, "grpc"), "/penstock.v1.Inference/Generate").await;
    endures(&cluster, &router, (&router, "http"), "/v1/chat/completions").await;
    endures(&cluster, &router, (&worker, "grpc"), "/penstock.v1.Worker/Generate").await;
    cluster.metric(&router, "penstock_requests_in_flight 0").await;
}
