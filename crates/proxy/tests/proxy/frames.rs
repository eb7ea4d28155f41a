//! HTTP/2 frame by frame, as a client that counts them sees it: some cut a connection off that
//! brings them too many empty ones.

use std::convert::Infallible;

use axum::{Router, body::Body, routing::any};
use bytes::Bytes;
use futures::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::stack::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// The setting for how many requests may be under way on a connection.
const MAX_CONCURRENT_STREAMS: u16 = 3;

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

async fn send(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    stream.write_all(&frame).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Frame {
    let mut head = [0; 9];
    soon(stream.read_exact(&mut head)).await.unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    soon(stream.read_exact(&mut payload)).await.unwrap();
    Frame { kind: head[3], flags: head[4], payload }
}

/// Header fields without any compression.
fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in list {
        block.push(0);
        for text in [name, value] {
            // Longer ones would need more than one byte for their length.
            assert!(text.len() < 127);
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A value of a SETTINGS frame.
fn setting(payload: &[u8], id: u16) -> Option<u32> {
    let entry = payload.chunks_exact(6).find(|entry| entry[..2] == id.to_be_bytes())?;
    Some(u32::from_be_bytes(entry[2..].try_into().unwrap()))
}

// Rules: TRAP-36, PROXY-25
#[tokio::test]
async fn downloads_have_no_empty_frames_and_no_padding() {
    let guest = Guest::new();
    let app = Router::new().fallback(any(async || {
        // Pieces of any size, a flush after each.
        let pieces = futures::stream::iter(0..2000_usize).then(async |number| {
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(Bytes::from(vec![b'x'; number % 97 + 1]))
        });
        Body::from_stream(pieces)
    }));
    guest.serve(ENVD, app).await;
    let expected: usize = (0..2000_usize).map(|number| number % 97 + 1).sum();
    for stack in both(&guest).await {
        let mut stream = TcpStream::connect(stack.address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        send(&mut stream, SETTINGS, 0, 0, &[]).await;
        send(&mut stream, WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes()).await;
        let host = host(ENVD);
        let head =
            [(":method", "GET"), (":scheme", "http"), (":authority", &*host), (":path", "/files")];
        send(&mut stream, HEADERS, END_STREAM | END_HEADERS, 1, &fields(&head)).await;
        send(&mut stream, WINDOW_UPDATE, 0, 1, &(1_u32 << 24).to_be_bytes()).await;
        let (mut received, mut streams) = (0, None);
        loop {
            let frame = receive(&mut stream).await;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => {
                    streams = setting(&frame.payload, MAX_CONCURRENT_STREAMS);
                    send(&mut stream, SETTINGS, ACK, 0, &[]).await;
                }
                PING if frame.flags & ACK == 0 => {
                    send(&mut stream, PING, ACK, 0, &frame.payload).await
                }
                DATA => {
                    assert_eq!(frame.flags & PADDED, 0, "{}: padding", stack.name);
                    received += frame.payload.len();
                    if frame.flags & END_STREAM != 0 {
                        break;
                    }
                    assert!(!frame.payload.is_empty(), "{}: an empty frame", stack.name);
                }
                _ => {}
            }
        }
        assert_eq!(received, expected, "{}", stack.name);
        assert!(streams.is_some_and(|streams| streams >= 100), "{}: {streams:?}", stack.name);
    }
}
