//! Name resolution from inside a slot, against a name server on the test's internet.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    thread,
};

use atoll_network::{Options, Service, Slot};
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, Record, rdata::A},
};

use crate::world::{World, options, probe};

/// Starts the name server on 198.51.100.53. What it answers depends on the name's first label:
/// `long` is truncated over UDP, `forged` is preceded by wrong answers, all else is 192.0.2.7.
pub(crate) fn serve() {
    serve_at("198.51.100.53:53", ResponseCode::NoError);
}

fn serve_at(address: &str, code: ResponseCode) {
    let udp = UdpSocket::bind(address).unwrap();
    let tcp = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer) {
            for answer in answers(&buffer[..length], code, true) {
                udp.send_to(&answer, client).unwrap();
            }
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query).unwrap();
            for answer in answers(&query, code, false) {
                stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        }
    });
}

fn answers(query: &[u8], code: ResponseCode, udp: bool) -> Vec<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let name = query.queries[0].name().clone();
    let label = name.to_string().split('.').next().unwrap().to_owned();
    let answer = |addresses: &[Ipv4Addr]| {
        let mut message =
            Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
        message.metadata.response_code = code;
        message.add_query(query.queries[0].clone());
        for address in addresses {
            message.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A(*address))));
        }
        message
    };
    let right = Ipv4Addr::new(192, 0, 2, 7);
    let wrong = Ipv4Addr::new(192, 0, 2, 66);
    let many: Vec<Ipv4Addr> = (0..100).map(|last| Ipv4Addr::new(192, 0, 2, last)).collect();
    let messages = match &*label {
        "long" if udp => {
            let mut message = answer(&[]);
            message.metadata.truncation = true;
            vec![message]
        }
        "long" => vec![answer(&many)],
        "forged" if udp => {
            let mut other_id = answer(&[wrong]);
            other_id.metadata.id = other_id.metadata.id.wrapping_add(1);
            let mut other_name = answer(&[wrong]);
            other_name.queries[0].set_name("other.example.".parse().unwrap());
            let mut no_response = answer(&[wrong]);
            no_response.metadata.message_type = MessageType::Query;
            vec![other_id, other_name, no_response, answer(&[right])]
        }
        _ => vec![answer(&[right])],
    };
    messages.into_iter().map(|message| message.to_vec().unwrap()).collect()
}

async fn slot_with(servers: &[&str]) -> (World, Service, Slot) {
    let world = World::new();
    world.internet.run(|| {
        serve();
        serve_at("198.51.100.66:53", ResponseCode::ServFail);
    });
    let dns: Vec<SocketAddr> = servers.iter().map(|server| server.parse().unwrap()).collect();
    let service = Service::start(Options { dns, ..options("a00001") }).await.unwrap();
    let slot = service.handle().take().await.unwrap();
    (world, service, slot)
}

pub(crate) async fn names_resolve_over_udp_and_tcp() {
    let (_world, service, slot) = slot_with(&["198.51.100.53:53"]).await;
    assert_eq!(probe(&slot, &["dns", "udp", "example.org."]).await, "NoError 192.0.2.7");
    assert_eq!(probe(&slot, &["dns", "tcp", "example.org."]).await, "NoError 192.0.2.7");
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_long_answer_is_had_over_tcp() {
    let (_world, service, slot) = slot_with(&["198.51.100.53:53"]).await;
    assert_eq!(probe(&slot, &["dns", "udp", "long.example."]).await, "NoError truncated");
    let answer = probe(&slot, &["dns", "tcp", "long.example."]).await;
    assert_eq!(answer.split(' ').count(), 101, "{answer}");
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_dead_or_failing_name_server_is_passed_over() {
    // Nobody listens at the first, and the second always fails.
    let servers = ["198.51.100.1:53", "198.51.100.66:53", "198.51.100.53:53"];
    let (_world, service, slot) = slot_with(&servers).await;
    for transport in ["udp", "tcp"] {
        assert_eq!(probe(&slot, &["dns", transport, "example.org."]).await, "NoError 192.0.2.7");
    }
    service.shutdown().await.unwrap();
}

pub(crate) async fn a_forged_answer_is_not_believed() {
    let (_world, service, slot) = slot_with(&["198.51.100.53:53"]).await;
    assert_eq!(probe(&slot, &["dns", "udp", "forged.example."]).await, "NoError 192.0.2.7");
    service.shutdown().await.unwrap();
}

pub(crate) async fn without_a_name_server_the_answer_is_a_failure() {
    let (_world, service, slot) = slot_with(&["198.51.100.1:53"]).await;
    for transport in ["udp", "tcp"] {
        assert_eq!(probe(&slot, &["dns", transport, "example.org."]).await, "ServFail");
    }
    service.shutdown().await.unwrap();
}
