//! `GET /files`: reads a file.
//!
//! A client that takes gzip gets a compressed stream of unknown length. One that asks for a range,
//! or says what it has already, gets the file as it is.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags};

use super::conditional::{self, Answer};
use super::encoding::{self, Coding, Gzip};
use super::{FileQuery, RestError, content_type, disposition};
use crate::guest::Guest;
use crate::signature::Operation;
use crate::{disk, paths, random};

/// Bytes read at a time.
const CHUNK: u64 = 256 << 10;

/// Files of the kernel say that they are empty. Up to here they are read at once, so that the
/// answer has a length; the rest is streamed.
const GENERATED: u64 = 64 << 10;

/// Handles `GET /files`.
pub async fn download(
    State(guest): State<Arc<Guest>>,
    query: Result<Query<FileQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, RestError> {
    let Query(query) = query.map_err(|rejection| RestError::bad_request(rejection.body_text()))?;
    super::authorize(&guest, &headers, &query, Operation::Read)?;
    let user = super::select_user(&guest, &query.username)?;
    let path = super::resolve(&guest, &query.path, &user)?;

    let name = paths::base_name(&path.to_string_lossy()).to_owned();
    let opened = path.clone();
    let found = disk::blocking(move || Found::open(&opened))
        .await
        .map_err(|error| RestError::internal(format!("error opening file: {error}")))??;
    super::log_event("file_read", "File opened for reading", &path, &user);
    let coding = encoding::negotiate(&headers, conditional::is_conditional(&headers))
        .map_err(|error| RestError::new(StatusCode::NOT_ACCEPTABLE, error.to_string()))?;

    let mut response = match found.content {
        // Clients tell an empty file by its length.
        Content::Stored { size, .. } if coding == Coding::Gzip && size > 0 => found.gzip(&name),
        Content::Generated { .. } if coding == Coding::Gzip => found.gzip(&name),
        _ => found.plain(&name, &headers)?,
    };
    set(&mut response, header::VARY, "Accept-Encoding");
    set(&mut response, header::CONTENT_DISPOSITION, &disposition::inline(&name));
    Ok(response)
}

/// Sets a header, if the text can be one.
fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// A file that was opened to be sent.
struct Found {
    content: Content,
    /// By the beginning of the content.
    sniffed: &'static str,
    modified: Option<SystemTime>,
}

enum Content {
    /// A file of this size.
    Stored { file: Arc<File>, size: u64 },
    /// One that the kernel makes up while it is read: its beginning, and the rest if it is longer.
    Generated { start: Vec<u8>, rest: Option<File> },
}

impl Found {
    /// Opens the file, blocking.
    fn open(path: &Path) -> Result<Self, RestError> {
        let failed = |error: io::Error| failure(path, &error);
        let found = std::fs::metadata(path).map_err(failed)?;
        check_kind(path, &found)?;
        // The guest may put a fifo there in the meantime, which must not hold the thread.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .map(File::from)
            .map_err(|error| failed(error.into()))?;
        let opened = file.metadata().map_err(failed)?;
        check_kind(path, &opened)?;

        let modified = conditional::header_time(opened.mtime());
        let size = opened.len();
        let mut start = Vec::new();
        let wanted = if size == 0 { GENERATED } else { content_type::SNIFF as u64 };
        Section { file: &file, range: 0..wanted }.read_to_end(&mut start).map_err(failed)?;
        let sniffed = content_type::sniff(&start);
        let content = if size > 0 || start.is_empty() {
            Content::Stored { file: Arc::new(file), size }
        } else {
            let rest = (start.len() as u64 == GENERATED).then_some(file);
            Content::Generated { start, rest }
        };
        Ok(Self { content, sniffed, modified })
    }

    /// The whole file, compressed. Its type is not sniffed.
    fn gzip(self, name: &str) -> Response {
        let body = match self.content {
            Content::Stored { file, size } => compressed(Section { file, range: 0..size }),
            Content::Generated { start, rest } => compressed(generated(start, rest)),
        };
        let mut response = body.into_response();
        let kind = content_type::by_name(name).unwrap_or(content_type::BINARY);
        set(&mut response, header::CONTENT_TYPE, kind);
        set(&mut response, header::CONTENT_ENCODING, "gzip");
        response
    }

    /// The file, or what the request wants of it, as it is.
    fn plain(self, name: &str, headers: &HeaderMap) -> Result<Response, RestError> {
        let kind = content_type::by_name(name).unwrap_or(self.sniffed);
        let (file, size) = match self.content {
            Content::Stored { file, size } => (file, size),
            Content::Generated { start, rest } => {
                let mut response = generated_body(start, rest).into_response();
                set(&mut response, header::CONTENT_TYPE, kind);
                return Ok(response);
            }
        };
        let mut response = match conditional::evaluate(headers, self.modified, size) {
            Answer::Whole => {
                let mut response = segments(file, vec![Segment::File(0..size)]);
                set(&mut response, header::CONTENT_TYPE, kind);
                response
            }
            Answer::Ranges(ranges) => partial(file, size, kind, ranges)?,
            Answer::NotModified => StatusCode::NOT_MODIFIED.into_response(),
            Answer::PreconditionFailed => {
                return Err(RestError::new(StatusCode::PRECONDITION_FAILED, "precondition failed"));
            }
            Answer::Unsatisfiable => {
                let status = StatusCode::RANGE_NOT_SATISFIABLE;
                let mut response = RestError::new(status, "invalid range").into_response();
                set(&mut response, header::CONTENT_RANGE, &format!("bytes */{size}"));
                return Ok(response);
            }
        };
        set(&mut response, header::ACCEPT_RANGES, "bytes");
        if let Some(modified) = self.modified {
            set(&mut response, header::LAST_MODIFIED, &httpdate::fmt_http_date(modified));
        }
        Ok(response)
    }
}

fn check_kind(path: &Path, found: &std::fs::Metadata) -> Result<(), RestError> {
    let path = path.display();
    if found.is_dir() {
        Err(RestError::bad_request(format!("path '{path}' is a directory")))
    } else if !found.is_file() {
        Err(RestError::bad_request(format!("path '{path}' is not a regular file")))
    } else {
        Ok(())
    }
}

fn failure(path: &Path, error: &io::Error) -> RestError {
    let path = path.display();
    if disk::is_missing(error) {
        RestError::new(StatusCode::NOT_FOUND, format!("path '{path}' does not exist"))
    } else {
        RestError::internal(format!("error opening path '{path}': {error}"))
    }
}

/// 206, with one range or with several in a multipart body.
fn partial(
    file: Arc<File>,
    size: u64,
    kind: &str,
    ranges: Vec<Range<u64>>,
) -> Result<Response, RestError> {
    let content_range =
        |range: &Range<u64>| format!("bytes {}-{}/{size}", range.start, range.end - 1);
    let mut response = if let [range] = ranges.as_slice() {
        let value = content_range(range);
        let mut response = segments(file, vec![Segment::File(range.clone())]);
        set(&mut response, header::CONTENT_RANGE, &value);
        set(&mut response, header::CONTENT_TYPE, kind);
        response
    } else {
        let boundary =
            random::hex().map_err(|error| RestError::internal(format!("no boundary: {error}")))?;
        let mut parts = Vec::new();
        for range in ranges {
            let head = format!(
                "\r\n--{boundary}\r\nContent-Range: {}\r\nContent-Type: {kind}\r\n\r\n",
                content_range(&range)
            );
            parts.extend([Segment::Text(head.into()), Segment::File(range)]);
        }
        parts.push(Segment::Text(format!("\r\n--{boundary}--\r\n").into()));
        let mut response = segments(file, parts);
        let kind = format!("multipart/byteranges; boundary={boundary}");
        set(&mut response, header::CONTENT_TYPE, &kind);
        response
    };
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    Ok(response)
}

/// A piece of an answer whose length is known.
enum Segment {
    Text(Bytes),
    File(Range<u64>),
}

/// Sends the segments one after the other. A file that has become shorter breaks the answer off.
fn segments(file: Arc<File>, segments: Vec<Segment>) -> Response {
    let length: u64 = segments
        .iter()
        .map(|segment| match segment {
            Segment::Text(text) => text.len() as u64,
            Segment::File(range) => range.end - range.start,
        })
        .sum();
    let mut queue = segments.into_iter();
    let mut current = 0..0;
    let body = body(move || {
        while current.is_empty() {
            match queue.next() {
                Some(Segment::Text(text)) => return Ok(Some(text)),
                Some(Segment::File(range)) => current = range,
                None => return Ok(None),
            }
        }
        let piece = read_at(&file, current.clone())?;
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        current.start += piece.len() as u64;
        Ok(Some(piece))
    });
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

fn generated(start: Vec<u8>, rest: Option<File>) -> impl Read + Send + 'static {
    let rest = rest.map(|file| Section { file, range: GENERATED..u64::MAX });
    Cursor::new(start).chain(
        rest.map_or_else::<Box<dyn Read + Send>, _, _>(
            || Box::new(io::empty()),
            |rest| Box::new(rest),
        ),
    )
}

fn generated_body(start: Vec<u8>, rest: Option<File>) -> Body {
    let Some(file) = rest else { return Body::from(start) };
    let mut offset = 0;
    body(move || {
        let piece = read_at(&file, offset..u64::MAX)?;
        offset += piece.len() as u64;
        Ok((!piece.is_empty()).then_some(piece))
    })
}

fn compressed(reader: impl Read + Send + 'static) -> Body {
    let mut gzip = Gzip::new(reader);
    body(move || {
        loop {
            match gzip.next(CHUNK)? {
                Some(piece) if piece.is_empty() => {}
                piece => return Ok(piece),
            }
        }
    })
}

/// A body of the pieces that `next` gives, each made on a blocking thread: one is made while the one
/// before it is sent.
fn body<F>(next: F) -> Body
where
    F: FnMut() -> io::Result<Option<Bytes>> + Send + 'static,
{
    let make = |mut next: F| tokio::task::spawn_blocking(move || (next(), next));
    Body::from_stream(futures::stream::try_unfold(make(next), move |making| async move {
        let (piece, next) = making.await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(piece?.map(|piece| (piece, make(next))))
    }))
}

/// Reads up to a chunk from the beginning of a range; empty at the file's end.
fn read_at(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let length = (range.end - range.start).min(CHUNK);
    let mut piece = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
    if length > 0 {
        rustix::io::pread(file, spare_capacity(&mut piece), range.start)?;
    }
    Ok(Bytes::from(piece))
}

/// A reader of a range of a file that does not move the file's own position.
struct Section<F> {
    file: F,
    range: Range<u64>,
}

impl<F: Borrow<File>> Read for Section<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        let read = rustix::io::pread(self.file.borrow(), &mut buffer[..length], self.range.start)?;
        self.range.start += read as u64;
        Ok(read)
    }
}
