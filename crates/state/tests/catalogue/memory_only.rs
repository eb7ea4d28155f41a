//! What is promised of the catalogue in memory alone.

use atoll_state::{
    MemoryCatalogue,
    catalogue::{Catalogue, Deadline},
};
use futures::poll;

use crate::values::{TEAM, after, start};

#[tokio::test]
async fn a_sooner_deadline_wakes_expiry_without_its_timer() {
    let catalogue = MemoryCatalogue::new();
    let first = start(&catalogue, TEAM, "i1").await;
    let second = start(&catalogue, TEAM, "i2").await;
    for sandbox in [second, first] {
        let expired = catalogue.expired();
        tokio::pin!(expired);
        assert!(poll!(expired.as_mut()).is_pending());
        catalogue.set_deadline(&sandbox, Deadline::Set(after(-1))).await.unwrap();
        assert!(poll!(expired).is_ready());
        catalogue.remove(&sandbox).await.unwrap();
    }
}

#[tokio::test]
async fn clones_share_what_runs() {
    let catalogue = MemoryCatalogue::new();
    let sandbox = start(&catalogue.clone(), TEAM, "i1").await;
    assert!(catalogue.get(&sandbox).await.unwrap().is_some());
}
