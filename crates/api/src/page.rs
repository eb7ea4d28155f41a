//! Listings in pages (control-plane contract, section 4).

use atoll_core::{Error, error::codes, limits::PAGE_SIZE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    cursor::{Key, Order},
    error::{ApiError, ApiResult},
};

const NEXT_TOKEN: HeaderName = HeaderName::from_static("x-next-token");

/// Which page of a listing is wanted.
pub(crate) struct Page {
    size: usize,
    order: Order,
    /// The last item of the page before.
    behind: Option<Key>,
}

impl Page {
    /// Reads `limit` and `nextToken` of a query.
    pub(crate) fn new(limit: Option<i64>, token: Option<&str>, order: Order) -> ApiResult<Self> {
        let limit = limit.unwrap_or(i64::from(PAGE_SIZE));
        let size = match usize::try_from(limit) {
            Ok(size) if (1..=PAGE_SIZE as usize).contains(&size) => size,
            _ => {
                return Err(ApiError::validation(format!(
                    "limit must be 1 to {PAGE_SIZE}, got {limit}"
                )));
            }
        };
        let behind = match token.filter(|token| !token.is_empty()) {
            None => None,
            Some(token) => Some(
                Key::decode(token, order)
                    .ok_or_else(|| ApiError::fixed(codes::INVALID_REQUEST, "Invalid next token"))?,
            ),
        };
        Ok(Self { size, order, behind })
    }

    /// Sorts all items and leaves those of the page; the header for the next one, if there is one,
    /// goes to `headers`.
    pub(crate) fn cut<T>(
        &self,
        items: &mut Vec<T>,
        key: impl Fn(&T) -> Key,
        headers: &mut HeaderMap,
    ) -> ApiResult<()> {
        items.sort_by(|a, b| key(a).compare(&key(b), self.order));
        if let Some(behind) = &self.behind {
            items.retain(|item| key(item).compare(behind, self.order).is_gt());
        }
        if items.len() > self.size {
            items.truncate(self.size);
            let next = items.last().map(|item| key(item).encode(self.order)).unwrap_or_default();
            let next = HeaderValue::try_from(next)
                .map_err(|error| Error::new(codes::INTERNAL, format!("a page cursor: {error}.")))?;
            headers.insert(NEXT_TOKEN, next);
        }
        Ok(())
    }
}
