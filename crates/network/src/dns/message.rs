//! As much of a DNS message (RFC 1035, section 4) as a forwarder must understand.

/// Bytes of the header.
const HEADER: usize = 12;
/// Longest name on the wire (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 255;
/// Whole zones are for name servers, not for sandboxes: AXFR and IXFR.
const ZONE_TRANSFERS: [u16; 2] = [252, 251];

/// Answer codes this server gives or looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Code {
    ServerFailure = 2,
    NotImplemented = 4,
    Refused = 5,
}

/// A well-formed query with one question.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    bytes: Vec<u8>,
    /// Where the question ends.
    end: usize,
}

/// What came in.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// To be forwarded.
    Query(Query),
    /// To be answered with this.
    Answer(Vec<u8>),
    /// Not a query at all: no answer.
    Garbage,
}

impl Incoming {
    pub(crate) fn parse(bytes: Vec<u8>) -> Self {
        let Some(end) = question_end(&bytes) else { return Self::Garbage };
        let is_response = bytes[2] & 0x80 != 0;
        if is_response {
            return Self::Garbage;
        }
        let operation = (bytes[2] >> 3) & 0xf;
        let kind = u16::from_be_bytes([bytes[end - 4], bytes[end - 3]]);
        let query = Query { bytes, end };
        if operation != 0 {
            Self::Answer(query.answer(Code::NotImplemented))
        } else if ZONE_TRANSFERS.contains(&kind) {
            Self::Answer(query.answer(Code::Refused))
        } else {
            Self::Query(query)
        }
    }
}

impl Query {
    /// The query as it came, with another id.
    pub(crate) fn with_id(&self, id: u16) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// An answer without records.
    pub(crate) fn answer(&self, code: Code) -> Vec<u8> {
        let mut bytes = self.bytes[..self.end].to_vec();
        // A response; operation and "recursion desired" as in the query; recursion available.
        bytes[2] = 0x80 | bytes[2] & 0x79;
        bytes[3] = 0x80 | code as u8;
        // One question, nothing else.
        bytes[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    /// Makes `response` the client's: `None` unless it answers this query as sent with `id`.
    pub(crate) fn accept(&self, mut response: Vec<u8>, id: u16) -> Option<Vec<u8>> {
        let end = question_end(&response)?;
        let is_response = response[2] & 0x80 != 0;
        let question = &response[HEADER..end];
        let same = question.eq_ignore_ascii_case(&self.bytes[HEADER..self.end]);
        if !is_response || response[..2] != id.to_be_bytes() || !same {
            return None;
        }
        response[..2].copy_from_slice(&self.bytes[..2]);
        Some(response)
    }
}

/// Whether another name server may do better than this response.
pub(crate) fn is_failure(response: &[u8]) -> bool {
    let code = response.get(3).map_or(0, |byte| byte & 0xf);
    [Code::ServerFailure, Code::NotImplemented, Code::Refused].iter().any(|c| *c as u8 == code)
}

/// Where the only question of a message ends. `None` unless there is exactly one, in full.
fn question_end(bytes: &[u8]) -> Option<usize> {
    if bytes.get(4..6)? != [0, 1] || bytes.len() < HEADER {
        return None;
    }
    let mut at = HEADER;
    loop {
        let label = usize::from(*bytes.get(at)?);
        // Two high bits mean compression: there is nothing before a question to point to.
        if label > 63 {
            return None;
        }
        at += 1 + label;
        if at - HEADER > LONGEST_NAME {
            return None;
        }
        if label == 0 {
            break;
        }
    }
    // Type and class follow the name.
    let end = at + 4;
    (end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, MessageType, OpCode, ResponseCode},
        rr::{Name, RecordType},
    };
    use proptest::prelude::*;

    use super::*;

    fn message(kind: RecordType, operation: OpCode) -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, operation);
        message.metadata.recursion_desired = true;
        let name: Name = "example.org.".parse().unwrap();
        message.add_query(hickory_proto::op::Query::query(name, kind));
        message.to_vec().unwrap()
    }

    fn query() -> Query {
        match Incoming::parse(message(RecordType::A, OpCode::Query)) {
            Incoming::Query(query) => query,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_are_what_a_resolver_expects() {
        let answer = Message::from_vec(&query().answer(Code::Refused)).unwrap();
        assert_eq!(answer.metadata.id, 0x1234);
        assert_eq!(answer.metadata.message_type, MessageType::Response);
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
        assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
        assert_eq!(answer.queries[0].name().to_string(), "example.org.");
        assert!(is_failure(&query().answer(Code::ServerFailure)));
    }

    #[test]
    fn updates_and_zone_transfers_go_nowhere() {
        for (bytes, code) in [
            (message(RecordType::A, OpCode::Update), ResponseCode::NotImp),
            (message(RecordType::AXFR, OpCode::Query), ResponseCode::Refused),
            (message(RecordType::IXFR, OpCode::Query), ResponseCode::Refused),
        ] {
            let Incoming::Answer(answer) = Incoming::parse(bytes) else { panic!("forwarded") };
            assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, code);
        }
    }

    #[test]
    fn only_the_answer_to_the_question_is_accepted() {
        let query = query();
        let mut response = query.with_id(7);
        assert_eq!(query.accept(response.clone(), 7), None, "a query is no response");
        response[2] |= 0x80;
        assert_eq!(query.accept(response.clone(), 8), None, "another id");
        assert_eq!(query.accept(response.clone(), 7).unwrap()[..2], [0x12, 0x34]);
        response[HEADER + 1] ^= 0x20;
        assert!(query.accept(response.clone(), 7).is_some(), "case may differ");
        response[HEADER + 1] ^= 0x01;
        assert_eq!(query.accept(response, 7), None, "another name");
    }

    #[test]
    fn what_is_no_query_is_not_answered() {
        let good = message(RecordType::A, OpCode::Query);
        let mut response = good.clone();
        response[2] |= 0x80;
        let mut two = good.clone();
        two[5] = 2;
        let mut pointer = good.clone();
        pointer[HEADER] = 0xc0;
        for bytes in [response, two, pointer, good[..good.len() - 1].to_vec(), Vec::new()] {
            assert!(matches!(Incoming::parse(bytes), Incoming::Garbage));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = is_failure(&bytes);
            let _ = query().accept(bytes.clone(), 0);
            let _ = Incoming::parse(bytes);
        }

        #[test]
        fn no_damage_panics(at in 0usize..29, byte: u8, cut in 0usize..=29) {
            let mut bytes = message(RecordType::A, OpCode::Query);
            bytes[at] = byte;
            bytes.truncate(cut);
            let _ = query().accept(bytes.clone(), 0x1234);
            let _ = Incoming::parse(bytes);
        }
    }
}
