//! Takes a multipart body apart as it arrives.
//!
//! The parser does no I/O: bytes go in with [`Parser::push`], [`Event`]s come out of
//! [`Parser::take`], and how the input was cut makes no difference to what comes out. It holds at
//! most what was pushed last, a part's headers or the beginning of a delimiter.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memmem;

/// Bound on the headers of one part. Longest in use is a path of 4096 bytes, percent-encoded.
pub const MAX_HEADERS: usize = 16 << 10;

/// Blanks that may stand between a boundary and the end of its line.
const MAX_PADDING: usize = 64;

/// A piece of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A part begins. The bytes are its header lines.
    Part(Bytes),
    /// Content of the part, not empty; more may follow.
    Data(Bytes),
    /// The part is complete.
    PartEnd,
}

/// Why a body is no multipart body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    /// The header lines of a part do not end in time.
    #[error("headers of a part are longer than {MAX_HEADERS} bytes")]
    HeadersTooLong,
    /// The body ended before its last delimiter.
    #[error("unexpected end of the multipart body")]
    Incomplete,
}

/// Where in the body the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first delimiter; what stands there is ignored.
    Preamble,
    Headers,
    Content,
    /// After the last delimiter; what stands there is ignored.
    Done,
}

/// What a delimiter turns out to be.
enum Delimiter {
    /// The next part follows after this many bytes.
    Next(usize),
    Last,
    /// Only looks like one so far.
    Undecided,
    /// Content that happens to begin like one.
    No,
}

/// A multipart body in the middle of arriving.
#[derive(Debug)]
pub struct Parser {
    /// Line break, two dashes, boundary.
    delimiter: Vec<u8>,
    buffer: BytesMut,
    state: State,
}

impl Parser {
    /// A parser for bodies with this boundary (the parameter of the content type).
    pub fn new(boundary: &str) -> Self {
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        // The first delimiter may start the body, without a line break: lend it one.
        Self { delimiter, buffer: BytesMut::from(&b"\r\n"[..]), state: State::Preamble }
    }

    /// Adds bytes of the body. Take all events before adding more, to keep the buffer small.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event, or `None` if it needs more input.
    ///
    /// # Errors
    /// [`MultipartError::HeadersTooLong`].
    pub fn take(&mut self) -> Result<Option<Event>, MultipartError> {
        match self.state {
            State::Preamble => self.skip_preamble(),
            State::Headers => self.take_headers(),
            State::Content => Ok(self.take_content()),
            State::Done => {
                self.buffer.clear();
                Ok(None)
            }
        }
    }

    /// To be called when the input is over and `take` has nothing more.
    ///
    /// # Errors
    /// [`MultipartError::Incomplete`] unless the last delimiter has been seen.
    pub fn finish(&self) -> Result<(), MultipartError> {
        if self.state == State::Done { Ok(()) } else { Err(MultipartError::Incomplete) }
    }

    fn skip_preamble(&mut self) -> Result<Option<Event>, MultipartError> {
        // What precedes a delimiter is dropped, a piece at a time.
        while let Some(content) = self.take_until_delimiter() {
            drop(content);
        }
        if self.state == State::Preamble { Ok(None) } else { self.take() }
    }

    fn take_headers(&mut self) -> Result<Option<Event>, MultipartError> {
        // A part without headers begins with the empty line.
        let (length, end) = if self.buffer.starts_with(b"\r\n") {
            (0, 2)
        } else if let Some(length) = memmem::find(&self.buffer, b"\r\n\r\n") {
            (length, 4)
        } else if self.buffer.len() < MAX_HEADERS + 4 {
            return Ok(None);
        } else {
            return Err(MultipartError::HeadersTooLong);
        };
        if length > MAX_HEADERS {
            return Err(MultipartError::HeadersTooLong);
        }
        let lines = self.buffer.split_to(length).freeze();
        self.buffer.advance(end);
        self.state = State::Content;
        Ok(Some(Event::Part(lines)))
    }

    fn take_content(&mut self) -> Option<Event> {
        if let Some(content) = self.take_until_delimiter() {
            return Some(Event::Data(content));
        }
        (self.state != State::Content).then_some(Event::PartEnd)
    }

    /// Takes bytes that are certainly not part of a delimiter; `None` when there are none now.
    /// A delimiter at the front is consumed, and changes the state.
    fn take_until_delimiter(&mut self) -> Option<Bytes> {
        let Some(at) = memmem::find(&self.buffer, &self.delimiter) else {
            let safe = self.buffer.len() - self.delimiter_prefix();
            return (safe > 0).then(|| self.buffer.split_to(safe).freeze());
        };
        if at > 0 {
            return Some(self.buffer.split_to(at).freeze());
        }
        match self.classify() {
            Delimiter::Next(length) => {
                self.buffer.advance(length);
                self.state = State::Headers;
                None
            }
            Delimiter::Last => {
                self.buffer.clear();
                self.state = State::Done;
                None
            }
            Delimiter::Undecided => None,
            Delimiter::No => Some(self.buffer.split_to(self.delimiter.len()).freeze()),
        }
    }

    /// Length of the longest end of the buffer that a delimiter may begin with.
    fn delimiter_prefix(&self) -> usize {
        let longest = self.buffer.len().min(self.delimiter.len() - 1);
        let tail = &self.buffer[self.buffer.len() - longest..];
        memchr::memchr_iter(b'\r', tail)
            .map(|at| &tail[at..])
            .find(|end| self.delimiter.starts_with(end))
            .map_or(0, <[u8]>::len)
    }

    /// Looks at what follows the delimiter at the front of the buffer.
    fn classify(&self) -> Delimiter {
        let rest = &self.buffer[self.delimiter.len()..];
        if rest.starts_with(b"--") {
            return Delimiter::Last;
        }
        let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        match &rest[padding..] {
            _ if padding > MAX_PADDING => Delimiter::No,
            [b'\r', b'\n', ..] => Delimiter::Next(self.delimiter.len() + padding + 2),
            [] | [b'\r'] => Delimiter::Undecided,
            [b'-'] if padding == 0 => Delimiter::Undecided,
            _ => Delimiter::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Headers and content of each part.
    type Parts = Vec<(Vec<u8>, Vec<u8>)>;

    fn parse<'a>(
        boundary: &str,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Parts, MultipartError> {
        let mut parser = Parser::new(boundary);
        let mut parts = Parts::new();
        let mut ended = 0;
        for piece in pieces {
            parser.push(piece);
            while let Some(event) = parser.take()? {
                match event {
                    Event::Part(headers) => parts.push((headers.to_vec(), Vec::new())),
                    Event::Data(data) => {
                        assert!(!data.is_empty());
                        parts.last_mut().unwrap().1.extend_from_slice(&data);
                    }
                    Event::PartEnd => ended += 1,
                }
            }
            let bound = piece.len() + MAX_HEADERS + parser.delimiter.len() + MAX_PADDING + 8;
            assert!(parser.buffer.len() < bound, "keeps no more than it needs");
        }
        parser.finish()?;
        assert_eq!(ended, parts.len(), "every part ends once");
        Ok(parts)
    }

    fn whole(body: &[u8]) -> Result<Parts, MultipartError> {
        parse("b", [body])
    }

    fn part(headers: &str, content: &str) -> (Vec<u8>, Vec<u8>) {
        (headers.into(), content.into())
    }

    #[test]
    fn parts_come_out_with_headers_and_content() {
        let body = b"--b\r\nA: 1\r\nB: 2\r\n\r\none\r\n--b\r\nC: 3\r\n\r\n\r\n--b--\r\n";
        assert_eq!(whole(body), Ok(vec![part("A: 1\r\nB: 2", "one"), part("C: 3", "")]));
    }

    #[test]
    fn the_form_may_be_loose() {
        let body = b"preamble\r\n--b \t\r\n\r\nno headers\r\n--b--epilogue\r\n--b\r\n\r\n";
        assert_eq!(whole(body), Ok(vec![part("", "no headers")]));
        assert_eq!(whole(b"--b--"), Ok(vec![]));
    }

    #[test]
    fn content_may_look_like_a_delimiter() {
        for content in
            ["\r\n--bb", "\r\n--b-x", "\r\n--b x", "\r\n--", "\r\r\n\r", "--b--", "\r\n--b \rx"]
        {
            let body = format!("--b\r\nA: 1\r\n\r\n{content}\r\n--b--");
            assert_eq!(whole(body.as_bytes()), Ok(vec![part("A: 1", content)]), "{content:?}");
        }
    }

    #[test]
    fn a_body_that_breaks_off_is_an_error() {
        let body = b"--b\r\nA: 1\r\n\r\none\r\n--b--";
        for end in 0..body.len() {
            assert_eq!(whole(&body[..end]), Err(MultipartError::Incomplete), "{end}");
        }
    }

    #[test]
    fn headers_have_a_limit() {
        let body = |length| [b"--b\r\n", &vec![b'h'; length][..], b"\r\n\r\n\r\n--b--"].concat();
        assert!(whole(&body(MAX_HEADERS)).is_ok());
        assert!(parse("b", body(MAX_HEADERS).chunks(1)).is_ok());
        assert_eq!(whole(&body(MAX_HEADERS + 1)), Err(MultipartError::HeadersTooLong));
        let endless = vec![b'h'; MAX_HEADERS + 4];
        assert_eq!(parse("b", [&b"--b\r\n"[..], &endless]), Err(MultipartError::HeadersTooLong));
    }

    /// Cuts `body` at the given places, in any order.
    fn cut<'a>(body: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
        let mut places: Vec<usize> =
            places.iter().map(|place| place.index(body.len() + 1)).collect();
        places.sort_unstable();
        places.push(body.len());
        let mut from = 0;
        places
            .into_iter()
            .map(|to| {
                let piece = &body[from..to];
                from = to;
                piece
            })
            .collect()
    }

    /// Bytes that make delimiters likely.
    fn tricky() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(b"\r\n-bx \t".to_vec()), 0..60)
    }

    proptest! {
        #[test]
        fn what_was_put_together_comes_apart(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5),
            places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut body = Vec::new();
            let mut expected = Parts::new();
            for (index, content) in contents.into_iter().enumerate() {
                let headers = format!("Index: {index}").into_bytes();
                body.extend_from_slice(b"--long-boundary\r\n");
                body.extend_from_slice(&headers);
                body.extend_from_slice(b"\r\n\r\n");
                body.extend_from_slice(&content);
                body.extend_from_slice(b"\r\n");
                expected.push((headers, content));
            }
            body.extend_from_slice(b"--long-boundary--\r\n");
            prop_assert_eq!(parse("long-boundary", cut(&body, &places)), Ok(expected));
        }

        #[test]
        fn cuts_make_no_difference(
            start in prop::sample::select(vec![&b""[..], b"--b\r\n", b"--b\r\n\r\n"]),
            rest in tricky(),
            places in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let body = [start, &rest].concat();
            prop_assert_eq!(parse("b", cut(&body, &places)), whole(&body));
            prop_assert_eq!(parse("b", body.chunks(1)), whole(&body));
        }
    }
}
