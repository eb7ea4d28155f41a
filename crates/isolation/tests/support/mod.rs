//! What tests with control groups of their own share.

use atoll_core::InstanceId;
use atoll_isolation::{cgroup::Cgroups, container::Container};

/// Names of the driver's groups.
pub(crate) fn groups(driver: &Container) -> Vec<String> {
    driver.cgroups().existing().into_iter().map(|(name, _)| name).collect()
}

/// Ends what runs in an instance's groups and removes them, whatever became of the test.
pub(crate) fn clean(instance: &InstanceId) {
    let cgroups = Cgroups::open(instance).unwrap();
    let clean = async move {
        for (_, group) in cgroups.existing() {
            group.kill();
            group.remove().await.unwrap();
        }
        cgroups.remove();
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || runtime.block_on(clean)).join().unwrap();
}
