//! `POST /files`: writes the files of a request.
//!
//! The body is one file (`application/octet-stream`) or a form (`multipart/*`) whose parts named
//! `file` are files; such a part goes to the `path` of the query or, without one, to the path that
//! is its file name. Files of a request that fails later stay written.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::{HeaderMap, header};
use serde::Serialize;

use super::body::UploadBody;
use super::metadata::{self, Metadata};
use super::multipart::{Event, MultipartError, Parser};
use super::sink::FileSink;
use super::{FileQuery, RestError, disposition};
use crate::guest::Guest;
use crate::paths;
use crate::signature::Operation;
use crate::users::User;

/// A file that was written, as clients expect to see it: no further fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WrittenFile {
    /// Where it is.
    pub path: String,
    /// Last element of the path.
    pub name: String,
    /// Always `file`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Left out when there is none.
    #[serde(skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
}

impl WrittenFile {
    /// The answer for a file written to `path`.
    pub fn new(path: &Path, metadata: Metadata) -> Self {
        let path = path.to_string_lossy().into_owned();
        Self { name: paths::base_name(&path).to_owned(), path, kind: "file", metadata }
    }
}

/// Handles `POST /files`.
pub async fn upload(
    State(guest): State<Arc<Guest>>,
    query: Result<Query<FileQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<WrittenFile>>, RestError> {
    let mut body = UploadBody::new(&headers, body)?;
    let written = match query {
        Ok(Query(query)) => receive(&guest, &query, &headers, &mut body).await,
        Err(rejection) => Err(RestError::bad_request(rejection.body_text())),
    };
    if written.is_err() {
        body.discard().await;
    }
    written.map(Json)
}

/// What all files of a request share.
struct Upload<'a> {
    guest: &'a Guest,
    query: &'a FileQuery,
    user: User,
    metadata: Metadata,
    written: Vec<WrittenFile>,
    /// The paths of what was written.
    taken: HashSet<PathBuf>,
}

async fn receive(
    guest: &Guest,
    query: &FileQuery,
    headers: &HeaderMap,
    body: &mut UploadBody,
) -> Result<Vec<WrittenFile>, RestError> {
    super::authorize(guest, headers, query, Operation::Write)?;
    let user = super::select_user(guest, &query.username)?;
    let metadata = metadata::from_headers(headers)
        .map_err(|error| RestError::bad_request(error.to_string()))?;
    let (written, taken) = (Vec::new(), HashSet::new());
    let mut upload = Upload { guest, query, user, metadata, written, taken };
    match ContentType::of(headers) {
        ContentType::Raw => upload.receive_raw(body).await?,
        ContentType::Multipart { boundary } => upload.receive_form(&boundary, body).await?,
        ContentType::Other(kind) => {
            return Err(RestError::bad_request(format!(
                "unsupported content type: {kind}, expected multipart/form-data or \
                 application/octet-stream"
            )));
        }
    }
    Ok(upload.written)
}

impl Upload<'_> {
    async fn receive_raw(&mut self, body: &mut UploadBody) -> Result<(), RestError> {
        if self.query.path.is_empty() {
            return Err(RestError::bad_request(
                "path query parameter is required for raw body upload",
            ));
        }
        let path = self.resolve(&self.query.path)?;
        let mut sink = self.create(&path).await?;
        while let Some(content) = body.next().await? {
            sink.write(&content).await?;
        }
        self.finish(sink, path).await
    }

    async fn receive_form(
        &mut self,
        boundary: &str,
        body: &mut UploadBody,
    ) -> Result<(), RestError> {
        let mut parser = Parser::new(boundary);
        // The file that is being received; other parts have none.
        let mut current: Option<(FileSink, PathBuf)> = None;
        while let Some(bytes) = body.next().await? {
            parser.push(&bytes);
            while let Some(event) = parser.take().map_err(bad_form)? {
                match event {
                    Event::Part(headers) => current = self.begin_part(&headers).await?,
                    Event::Data(content) => {
                        if let Some((sink, _)) = &mut current {
                            sink.write(&content).await?;
                        }
                    }
                    Event::PartEnd => {
                        if let Some((sink, path)) = current.take() {
                            self.finish(sink, path).await?;
                        }
                    }
                }
            }
        }
        parser.finish().map_err(bad_form)
    }

    /// Opens the destination of a part, unless the part is not a file.
    async fn begin_part(&self, headers: &[u8]) -> Result<Option<(FileSink, PathBuf)>, RestError> {
        let Some(part) = disposition::form_part(headers) else { return Ok(None) };
        if part.name.as_deref() != Some("file") {
            return Ok(None);
        }
        let path = match (self.query.path.as_str(), &part.filename) {
            ("", Some(filename)) if !filename.is_empty() => self.resolve(filename)?,
            ("", _) => {
                return Err(RestError::bad_request(
                    "file name not found in the Content-Disposition header of a part, and there \
                     is no path query parameter",
                ));
            }
            (path, _) => self.resolve(path)?,
        };
        self.refuse_second(&path)?;
        Ok(Some((self.create(&path).await?, path)))
    }

    fn refuse_second(&self, path: &Path) -> Result<(), RestError> {
        if !self.taken.contains(path) {
            return Ok(());
        }
        let path = path.to_string_lossy();
        let others: Vec<_> =
            self.written.iter().map(|file| file.path.as_str()).filter(|it| *it != path).collect();
        let mut message = format!(
            "you cannot upload multiple files to the same path '{path}' in one upload request, \
             only the first specified file was uploaded"
        );
        if !others.is_empty() {
            message.push_str(", also the following files were uploaded: ");
            message.push_str(&others.join(", "));
        }
        Err(RestError::bad_request(message))
    }

    fn resolve(&self, path: &str) -> Result<PathBuf, RestError> {
        super::resolve(self.guest, path, &self.user)
    }

    async fn create(&self, path: &Path) -> Result<FileSink, RestError> {
        FileSink::create(path.to_owned(), self.user.clone()).await
    }

    async fn finish(&mut self, sink: FileSink, path: PathBuf) -> Result<(), RestError> {
        sink.finish(self.metadata.clone()).await?;
        super::log_event("file_write", "File written", &path, &self.user);
        self.written.push(WrittenFile::new(&path, self.metadata.clone()));
        self.taken.insert(path);
        Ok(())
    }
}

fn bad_form(error: MultipartError) -> RestError {
    RestError::bad_request(format!("error parsing multipart form: {error}"))
}

/// What the body of an upload is.
#[derive(Debug, PartialEq, Eq)]
enum ContentType {
    Raw,
    Multipart { boundary: String },
    Other(String),
}

impl ContentType {
    fn of(headers: &HeaderMap) -> Self {
        let value = headers
            .get(header::CONTENT_TYPE)
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .unwrap_or_default();
        let (kind, parameters) = value.split_once(';').unwrap_or((&value, ""));
        let kind = kind.trim().to_ascii_lowercase();
        if kind == "application/octet-stream" {
            return Self::Raw;
        }
        match boundary(parameters) {
            Some(boundary) if kind.starts_with("multipart/") => Self::Multipart { boundary },
            _ => Self::Other(value.into_owned()),
        }
    }
}

/// The `boundary` parameter of a content type: 1 to 70 characters, says the standard.
fn boundary(parameters: &str) -> Option<String> {
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim();
        let value =
            value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        (name.trim().eq_ignore_ascii_case("boundary") && (1..=70).contains(&value.len()))
            .then(|| value.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn content_type(value: &str) -> ContentType {
        let value = HeaderValue::from_str(value).unwrap();
        ContentType::of(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)]))
    }

    #[test]
    fn content_types_are_told_apart() {
        let multipart = |boundary: &str| ContentType::Multipart { boundary: boundary.into() };
        assert_eq!(content_type("application/octet-stream"), ContentType::Raw);
        assert_eq!(content_type("Application/Octet-Stream; charset=utf-8"), ContentType::Raw);
        assert_eq!(content_type("multipart/form-data; boundary=x"), multipart("x"));
        assert_eq!(content_type("multipart/mixed; a=b; Boundary=\"x y\""), multipart("x y"));
        assert_eq!(content_type("text/plain"), ContentType::Other("text/plain".into()));
        for broken in ["multipart/form-data", "multipart/form-data; boundary="] {
            assert_eq!(content_type(broken), ContentType::Other(broken.into()));
        }
        assert_eq!(ContentType::of(&HeaderMap::new()), ContentType::Other(String::new()));
    }
}
