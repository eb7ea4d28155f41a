//! envd over a checkpoint: what its clients had open, and what they find afterwards.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
};

use atoll_isolation::{Driver, Running};

use crate::{
    unending,
    world::{DEADLINE, Namespaces, World, end, until},
};

const CONFIG: &str =
    r#"{ "control_secret": "secret", "sandbox_id": "isource", "template_id": "base" }"#;
const SCRIPT: &str =
    "i=0; while :; do i=$((i+1)); echo line-$i; echo $i >/counter; sleep 0.05; done";

fn connect(slot: &Namespaces) -> TcpStream {
    slot.inside(|| {
        let stream = TcpStream::connect("127.0.0.1:49983").unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    })
}

/// Sends a request and gives the connection, from which nothing was read yet.
fn request(slot: &Namespaces, path: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = connect(slot);
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: envd\r\n{headers}Content-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream
}

/// Calls a method that answers with a stream.
fn stream(slot: &Namespaces, method: &str, message: &str) -> TcpStream {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let body = [&[0][..], &length, message.as_bytes()].concat();
    request(slot, method, "Content-Type: application/connect+json\r\n", &body)
}

fn initialize(slot: &Namespaces, secret: &str, body: &str) -> String {
    let headers = format!("X-Atoll-Control: {secret}\r\nContent-Type: application/json\r\n");
    let mut answer = [0; 1024];
    let count = request(slot, "/init", &headers, body.as_bytes()).read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

/// The numbers of the lines that a stream brings, until there are `count` of them.
fn lines(stream: &mut TcpStream, count: usize) -> Vec<u64> {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let numbers: Vec<u64> = text
            .split("\"stdout\":\"")
            .skip(1)
            .filter_map(|rest| decode(rest.split_once('"')?.0))
            .flatten()
            .collect();
        if numbers.len() >= count {
            return numbers;
        }
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the stream has ended: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
}

/// The numbers in lines `line-N`, base64.
fn decode(text: &str) -> Option<Vec<u64>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = String::new();
    for letter in text.bytes().filter(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        bits.push_str(&format!("{value:06b}"));
    }
    let bytes: Vec<u8> = (0..bits.len() / 8)
        .map(|at| u8::from_str_radix(&bits[at * 8..at * 8 + 8], 2).unwrap())
        .collect();
    let decoded = String::from_utf8(bytes).ok()?;
    decoded.lines().map(|line| line.strip_prefix("line-")?.parse().ok()).collect()
}

fn counted(disk: &Path) -> u64 {
    let text = std::fs::read_to_string(disk.join("upper/counter")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[tokio::test]
async fn a_command_that_was_followed_can_be_followed_again_and_streams_end() {
    let Some(world) = World::new(50).await else { return };
    let slot = Namespaces::new(51);
    let running = world.start(&slot, "disk", &["/bin/envd"], CONFIG).await;
    until("envd answers", || {
        initialize(&slot, "secret", "{}").starts_with("HTTP/1.1 204").then_some(())
    })
    .await;
    running.cgroup.set_apart(running.process.pid()).unwrap();
    let unused = sockets(&running);
    let start = format!(
        r#"{{ "process": {{ "cmd": "/bin/sh", "args": ["-c", "{SCRIPT}"] }}, "tag": "count" }}"#
    );
    let mut followed = stream(&slot, "/process.Process/Start", &start);
    assert_eq!(lines(&mut followed, 3)[..3], [1, 2, 3]);

    world.driver.freeze(&running).await.unwrap();
    let images = world.make("images");
    let dumped = world.driver.dump(&running, &images).await.unwrap();
    world.copy("disk", "saved");
    // The client hears of it.
    let mut rest = Vec::new();
    followed.read_to_end(&mut rest).unwrap_err();
    running.kill().unwrap();
    dumped.release().await.unwrap();
    end(running).await;

    let other = Namespaces::new(52);
    let work = world.make("work");
    let disk = world.at("saved");
    let restored =
        world.driver.restore(world.spec(&other, &disk), &images, &work, &unending()).await.unwrap();
    let before = counted(&disk);
    restored.cgroup.set_apart(restored.process.pid()).unwrap();
    let body = r#"{ "controlSecret": "rotated", "sandboxId": "ifork" }"#;
    assert!(initialize(&other, "secret", body).starts_with("HTTP/1.1 204"));
    assert!(initialize(&other, "secret", "{}").starts_with("HTTP/1.1 401"));

    let select = r#"{ "process": { "tag": "count" } }"#;
    let mut again = stream(&other, "/process.Process/Connect", select);
    let numbers = lines(&mut again, 3);
    assert!(numbers.iter().zip(&numbers[1..]).all(|(one, next)| one + 1 == *next), "{numbers:?}");
    assert!(numbers[0] + 50 > before && numbers[0] < before + 10_000, "{numbers:?} after {before}");
    drop(again);
    until("cut connections are let go", || (sockets(&restored) <= unused).then_some(())).await;
    end(restored).await;
}

/// How many sockets envd has.
fn sockets(running: &Running) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", running.process.pid())).unwrap().flatten();
    let targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}
