//! How every list is cut into pages.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::{ApiError, ErrorCode};

/// Items of a page where the request does not say.
const PAGE_ITEMS_DEFAULT: u32 = 100;

/// Most items of one page: a few hundred kilobytes of JSON.
pub(super) const PAGE_ITEMS_MAX: u32 = 1000;

/// Which page of a list.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Most items to return: 1 to 1000. Default: 100.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before; the first page without it.
    pub cursor: Option<String>,
}

impl PageQuery {
    /// How many items.
    pub(super) fn limit(&self) -> Result<usize, ApiError> {
        limit(self.limit)
    }
}

/// How many items, for lists with other parameters beside.
pub(super) fn limit(asked: Option<u32>) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(PAGE_ITEMS_DEFAULT);
    if (1..=PAGE_ITEMS_MAX).contains(&limit) {
        return Ok(limit as usize);
    }
    let message = format!("limit is {limit}; use 1 to {PAGE_ITEMS_MAX}, and next_cursor for more");
    Err(ApiError::new(ErrorCode::BadRequest, message).in_field("limit"))
}

/// Reads a cursor.
pub(super) fn parse_cursor<T: std::str::FromStr>(cursor: Option<&str>) -> Result<Option<T>, ApiError> {
    let malformed = |_| {
        let message = "cursor is not one that this list gave out; use next_cursor of the page before, unchanged";
        ApiError::new(ErrorCode::BadRequest, message).in_field("cursor")
    };
    cursor.map(str::parse).transpose().map_err(malformed)
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// In the list's order.
    pub items: Vec<T>,
    /// Where the next page begins; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Cuts `found`, of which there may be one more than `limit`, and names the cursor of its last item.
    pub(super) fn cut(mut found: Vec<T>, limit: usize, cursor: impl FnOnce(&T) -> String) -> Self {
        let more = found.len() > limit;
        found.truncate(limit);
        let next_cursor = if more { found.last().map(cursor) } else { None };
        Self { items: found, next_cursor }
    }

    /// The same page of other items.
    pub(super) fn map<U>(self, view: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(view).collect(), next_cursor: self.next_cursor }
    }
}
