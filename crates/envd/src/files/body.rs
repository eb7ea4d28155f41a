//! The body of an upload: frames of the request, gzip taken off, and patience that ends.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use tokio::time::timeout;

use super::RestError;
use super::encoding::Gunzip;

/// How long a client may send nothing. Uploads have no other time limit.
const IDLE: Duration = Duration::from_secs(90);

/// What is still read after an upload failed, so that the client gets to see the answer: a
/// connection closed with unread input is reset, and the answer lost.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// The decoded bytes of an upload.
pub struct UploadBody {
    frames: BodyDataStream,
    gunzip: Option<Gunzip>,
    /// Received, not yet decoded.
    pending: Bytes,
    idle: Duration,
    ended: bool,
}

impl UploadBody {
    /// The body of a request with these headers.
    ///
    /// # Errors
    /// 400 for a content coding other than identity and gzip.
    pub fn new(headers: &HeaderMap, body: Body) -> Result<Self, RestError> {
        let coding = headers
            .get(header::CONTENT_ENCODING)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase())
            .unwrap_or_default();
        let gunzip = match coding.as_str() {
            "" | "identity" => None,
            "gzip" => Some(Gunzip::new()),
            _ => {
                return Err(RestError::bad_request(format!(
                    "error parsing Content-Encoding: unsupported Content-Encoding: {coding}, \
                     supported: [gzip]"
                )));
            }
        };
        let frames = body.into_data_stream();
        Ok(Self { frames, gunzip, pending: Bytes::new(), idle: IDLE, ended: false })
    }

    /// The next bytes, never empty; `None` at the end.
    ///
    /// # Errors
    /// 408 when the client has stalled, 400 when the body breaks off or is not what it says.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RestError> {
        loop {
            let content = if self.ended {
                return Ok(None);
            } else if !self.pending.is_empty() {
                self.decode()?
            } else if let Some(frame) = self.frame().await? {
                self.pending = frame;
                continue;
            } else {
                self.ended = true;
                self.finish()?
            };
            if !content.is_empty() {
                return Ok(Some(content));
            }
        }
    }

    /// Reads on for a while and forgets what it reads.
    pub async fn discard(mut self) {
        let mut left = DISCARD_BYTES;
        let reading = async {
            while let Some(Ok(frame)) = self.frames.next().await {
                left = left.saturating_sub(frame.len());
                if left == 0 {
                    break;
                }
            }
        };
        // Out of time is as good as out of input here.
        timeout(DISCARD_TIME, reading).await.unwrap_or_default();
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, RestError> {
        match timeout(self.idle, self.frames.next()).await {
            Ok(frame) => frame.transpose().map_err(|error| {
                RestError::bad_request(format!("error reading request body: {error}"))
            }),
            Err(_) => Err(RestError::new(
                StatusCode::REQUEST_TIMEOUT,
                format!("the client sent nothing for {} seconds", self.idle.as_secs()),
            )),
        }
    }

    fn decode(&mut self) -> Result<Bytes, RestError> {
        match &mut self.gunzip {
            None => Ok(std::mem::take(&mut self.pending)),
            Some(gunzip) => gunzip.decode(&mut self.pending).map_err(bad_gzip),
        }
    }

    fn finish(&mut self) -> Result<Bytes, RestError> {
        self.gunzip
            .as_mut()
            .map_or_else(|| Ok(Bytes::new()), |gunzip| gunzip.finish().map_err(bad_gzip))
    }
}

fn bad_gzip(error: std::io::Error) -> RestError {
    RestError::bad_request(format!("error decompressing request body: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: PUT-21, TRAP-44
    #[tokio::test]
    async fn a_client_that_stalls_is_cut_off() {
        let body = Body::from_stream(
            futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"start"))])
                .chain(futures::stream::pending()),
        );
        let mut body = UploadBody::new(&HeaderMap::new(), body).unwrap();
        body.idle = Duration::from_millis(1);
        assert_eq!(body.next().await, Ok(Some(Bytes::from_static(b"start"))));
        assert_eq!(body.next().await.unwrap_err().status, StatusCode::REQUEST_TIMEOUT);
    }

    // Rules: PUT-2
    #[tokio::test]
    async fn an_unknown_coding_is_refused() {
        let headers = HeaderMap::from_iter([(
            header::CONTENT_ENCODING,
            http::HeaderValue::from_static("br"),
        )]);
        let error = UploadBody::new(&headers, Body::empty()).err().unwrap();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
    }
}
