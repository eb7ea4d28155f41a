//! What a kernel prints while it runs no cell: it is told with the next, as far as it is kept.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::{Stream, pipes::Item};

/// How much of what is said between two cells is kept, in bytes, and whatever began before that.
const KEPT: usize = 64 * 1024;

/// What was said between two cells: the first of it.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    items: VecDeque<Item>,
    length: usize,
    /// How much is not kept, in bytes.
    dropped: usize,
}

impl Backlog {
    pub(crate) fn push(&mut self, item: Item) {
        let size = size(&item);
        if self.dropped > 0 || self.length > KEPT {
            self.dropped += size;
        } else {
            self.length += size;
            self.items.push_back(item);
        }
    }

    /// Takes what was said after that.
    pub(crate) fn append(&mut self, later: Self) {
        later.items.into_iter().for_each(|item| self.push(item));
        self.dropped += later.dropped;
    }

    /// All that is kept, and at its end a sentence about the rest, if there is any.
    pub(crate) fn into_items(mut self) -> VecDeque<Item> {
        if self.dropped > 0 {
            let text = format!("[{} bytes of output between cells are left out]\n", self.dropped);
            let at = Timestamp::now();
            self.items.push_back(Item::Printed { stream: Stream::Stderr, text, at });
        }
        self.items
    }
}

/// How much memory something takes that was said, about, in bytes.
pub(crate) fn size(item: &Item) -> usize {
    let length = match item {
        Item::Printed { text, .. } | Item::Record(text) => text.len(),
        Item::TooLarge(_) => 0,
    };
    length + size_of::<Item>()
}
