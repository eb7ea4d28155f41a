//! What is promised of the catalogue in memory alone.

use atoll_core::lifecycle::State;
use atoll_state::MemoryCatalogue;

use crate::values::{TEAM, known, put};

#[tokio::test]
async fn clones_share_what_there_is() {
    let catalogue = MemoryCatalogue::new();
    put(&catalogue.clone(), TEAM, "i1", State::Running).await;
    assert_eq!(known(&catalogue, "i1").await, Some((State::Running, 1)));
}
