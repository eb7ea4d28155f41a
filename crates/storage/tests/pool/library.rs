//! Builds, leases and the layers that they share: what goes, and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use atoll_core::{LayerId, error::codes, lifecycle::Kept};
use atoll_storage::{BuildManifest, Disk, Handle, Lease, Service};

use crate::{DataDir, MIB, build_id, manifest, small_layer, until};

fn ids(layers: &[&LayerId]) -> BTreeSet<String> {
    layers.iter().map(|id| id.to_string()).collect()
}

#[tokio::test]
async fn deleting_a_build_frees_what_nothing_else_uses() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let (shared, one, two) =
        (small_layer(&storage).await, small_layer(&storage).await, small_layer(&storage).await);
    storage.put_build(&manifest(1, &[shared.clone(), one.clone()])).await.unwrap();
    storage.put_build(&manifest(2, &[shared.clone(), two.clone()])).await.unwrap();
    // A sandbox runs on the first.
    let lease = storage.lease(&[shared.clone(), one.clone()]).await.unwrap();

    assert!(storage.delete_build(&build_id(1)).await.unwrap());
    assert!(!storage.delete_build(&build_id(1)).await.unwrap());
    assert!(!storage.delete_build("../../etc/passwd").await.unwrap());
    assert!(storage.build(&build_id(1)).await.unwrap().is_none());
    assert_eq!(dir.layers(), ids(&[&shared, &one, &two]), "in use");
    lease.end().await.unwrap();
    assert_eq!(dir.layers(), ids(&[&shared, &two]));
    let error = storage.lease(&[shared.clone(), one.clone()]).await.unwrap_err();
    assert_eq!(error.code, codes::TEMPLATE_MISSING);
    let error = storage.put_build(&manifest(3, &[one])).await.unwrap_err();
    assert_eq!(error.code, codes::TEMPLATE_MISSING);
    // Neither has left a trace.
    assert!(storage.delete_build(&build_id(2)).await.unwrap());
    assert_eq!(dir.layers(), ids(&[]));
    assert!(storage.layers().await.is_empty());
    service.shutdown().await;
}

#[tokio::test]
async fn a_runtime_layer_lasts_as_long_as_this_run_or_a_snapshot_needs_it() {
    let dir = DataDir::new();
    let service = dir.start(0).await;
    let storage = service.handle();
    let (base, runtime) = (small_layer(&storage).await, small_layer(&storage).await);
    storage.put_build(&manifest(1, std::slice::from_ref(&base))).await.unwrap();
    let disk = storage.take_disk(10 * MIB).await.unwrap();
    snapshot(&storage, &disk, 2, &[&base], &[&base, &runtime]).await;
    // Another snapshot goes, and the layer is the present one still.
    snapshot(&storage, &disk, 3, &[&base], &[&base, &runtime]).await;
    assert!(storage.delete_build(&build_id(3)).await.unwrap());
    assert!(storage.sweep().await.unwrap().is_empty());
    disk.destroy().await.unwrap();
    service.shutdown().await;

    // The next run has another one, and finds this one in the snapshot.
    let service = dir.start(0).await;
    let storage = service.handle();
    let new = small_layer(&storage).await;
    assert!(storage.sweep().await.unwrap().is_empty());
    assert!(storage.delete_build(&build_id(2)).await.unwrap());
    assert_eq!(dir.layers(), ids(&[&base, &new]));
    service.shutdown().await;

    // One that it finds again it keeps; one that it does not, goes.
    let service = dir.start(0).await;
    service.handle().keep_layer(&new);
    assert!(service.handle().sweep().await.unwrap().is_empty());
    service.shutdown().await;
    let service = dir.start(0).await;
    assert_eq!(service.handle().sweep().await.unwrap(), [new]);
    assert_eq!(dir.layers(), ids(&[&base]));
    service.shutdown().await;
}

async fn snapshot(
    storage: &Handle,
    disk: &Disk,
    number: u32,
    layers: &[&LayerId],
    stack: &[&LayerId],
) {
    let owned = |ids: &[&LayerId]| ids.iter().map(|id| (*id).clone()).collect::<Vec<_>>();
    storage.seal(disk, &build_id(number)).await.unwrap();
    let manifest = BuildManifest {
        snapshot: Some(Kept::Checkpoint),
        stack: owned(stack),
        control_secret: Some("secret".into()),
        ..manifest(number, &owned(layers))
    };
    storage.put_build(&manifest).await.unwrap();
    assert_eq!(storage.build(&manifest.id).await.unwrap(), Some(manifest));
}

/// What there should be, by what was done.
struct Model {
    dir: DataDir,
    service: Service,
    storage: Handle,
    disk: Disk,
    random: u64,
    /// Every layer that was ever made.
    made: Vec<LayerId>,
    builds: BTreeMap<u32, BuildManifest>,
    leases: Vec<Lease>,
    /// Made in this run, and in no manifest so far.
    new: BTreeSet<String>,
    /// Unused, but for the sweep to find.
    garbage: BTreeSet<String>,
}

impl Model {
    async fn new(seed: u64) -> Self {
        let dir = DataDir::new();
        let service = dir.start(0).await;
        let storage = service.handle();
        let disk = storage.take_disk(10 * MIB).await.unwrap();
        Self {
            dir,
            service,
            storage,
            disk,
            random: seed,
            made: Vec::new(),
            builds: BTreeMap::new(),
            leases: Vec::new(),
            new: BTreeSet::new(),
            garbage: BTreeSet::new(),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound.max(1) as u64) as usize
    }

    /// Some of the layers, the younger ones more often; they may be gone.
    fn some(&mut self) -> Vec<LayerId> {
        let count = 1 + self.below(3);
        let recent = self.made.len().min(8);
        let picks: Vec<usize> = (0..count).map(|_| self.below(recent)).collect();
        picks.iter().filter_map(|pick| self.made.iter().rev().nth(*pick).cloned()).collect()
    }

    fn there(&self, layers: &[LayerId]) -> bool {
        let there = self.dir.layers();
        layers.iter().all(|id| there.contains(id.as_str()))
    }

    /// A mark, by what is on disk and who holds a lease.
    fn marked(&self) -> BTreeSet<String> {
        let mut marked = self.new.clone();
        for entry in fs::read_dir(self.dir.path().join("builds")).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let (_, text) = text.split_once('\n').unwrap();
            let found: BuildManifest = serde_json::from_str(text).unwrap();
            assert_eq!(self.builds.values().find(|build| build.id == found.id), Some(&found));
            marked.extend(found.layers.iter().chain(&found.stack).map(LayerId::to_string));
        }
        let leased = self.leases.iter().flat_map(Lease::layers);
        marked.extend(leased.map(LayerId::to_string));
        marked
    }

    async fn step(&mut self) -> &'static str {
        match self.below(20) {
            0..4 => {
                let id = small_layer(&self.storage).await;
                self.new.insert(id.to_string());
                self.made.push(id);
                "make a layer"
            }
            4..8 => self.put().await,
            8..11 => {
                let number = self.below(5) as u32;
                let deleted = self.storage.delete_build(&build_id(number)).await.unwrap();
                assert_eq!(deleted, self.builds.remove(&number).is_some());
                "delete a build"
            }
            11..14 => {
                let layers = self.some();
                match self.storage.lease(&layers).await {
                    Ok(lease) => self.leases.push(lease),
                    Err(error) => {
                        assert_eq!(error.code, codes::TEMPLATE_MISSING);
                        assert!(!self.there(&layers));
                    }
                }
                "take a lease"
            }
            14..16 if !self.leases.is_empty() => {
                let which = self.below(self.leases.len());
                self.leases.swap_remove(which).end().await.unwrap();
                "end a lease"
            }
            16 if !self.leases.is_empty() => {
                let which = self.below(self.leases.len());
                let lease = self.leases.swap_remove(which);
                self.garbage.extend(lease.layers().iter().map(LayerId::to_string));
                "drop a lease"
            }
            17 => {
                let swept = self.storage.sweep().await.unwrap();
                let swept: BTreeSet<String> = swept.iter().map(LayerId::to_string).collect();
                assert_eq!(swept, std::mem::take(&mut self.garbage));
                "sweep"
            }
            18.. => self.crash().await,
            _ => "nothing",
        }
    }

    async fn put(&mut self) -> &'static str {
        let (number, layers, snapshot) = (self.below(5) as u32, self.some(), self.below(2) == 0);
        // A build is put once, or again as what it was; ids are never used for something else.
        if self.builds.get(&number).is_some_and(|build| build.snapshot.is_some() != snapshot) {
            return "nothing";
        }
        let build = BuildManifest {
            snapshot: snapshot.then_some(Kept::Disk),
            stack: if snapshot { self.some() } else { Vec::new() },
            ..manifest(number, &layers)
        };
        if snapshot {
            self.storage.seal(&self.disk, &build.id).await.unwrap();
        }
        match self.storage.put_build(&build).await {
            Ok(()) => {
                for id in &build.layers {
                    self.new.remove(id.as_str());
                }
                self.builds.insert(number, build);
                "put a build"
            }
            Err(error) => {
                assert_eq!(error.code, codes::TEMPLATE_MISSING);
                if snapshot && !self.builds.contains_key(&number) {
                    self.storage.drop_saved(&build.id).await.unwrap();
                }
                "put a build of what is gone"
            }
        }
    }

    /// Stops as SIGKILL does, perhaps in the middle of a delete; then starts and takes leases again.
    async fn crash(&mut self) -> &'static str {
        let dir = &self.dir;
        // Nothing of this run is to go on in the next.
        until("all is read", || {
            let layers = dir.layers();
            let layers = layers.iter().map(|id| dir.path().join("layers").join(id).join("digest"));
            layers.into_iter().all(|digest| digest.exists())
        })
        .await;
        let number = self.below(10) as u32;
        if let Some(build) = self.builds.remove(&number) {
            let file = self.dir.path().join(format!("builds/{}.json", build.id));
            fs::remove_file(file).unwrap();
        }
        if let Some(id) = self.garbage.pop_first()
            && !self.marked().contains(&id)
        {
            fs::remove_file(self.dir.path().join("layers").join(&id).join("layer.json")).unwrap();
        }
        let mut leases = std::mem::take(&mut self.leases);
        let owned = if self.below(2) == 0 { leases.len() } else { self.below(leases.len()) };
        let owned = leases.drain(..owned).map(|lease| lease.layers().to_vec()).collect::<Vec<_>>();
        drop(leases);

        let service = self.dir.start(0).await;
        self.storage = service.handle();
        drop(std::mem::replace(&mut self.service, service));
        let disk = self.storage.take_disk(10 * MIB).await.unwrap();
        std::mem::forget(std::mem::replace(&mut self.disk, disk));
        for layers in owned {
            self.leases.push(self.storage.lease(&layers).await.unwrap());
        }
        self.new.clear();
        self.garbage = self.dir.layers();
        "crash"
    }

    /// Compares what is on disk with the mark and the garbage.
    fn check(&mut self, what: &str) {
        let marked = self.marked();
        self.garbage.retain(|id| !marked.contains(id));
        let expected: BTreeSet<String> = marked.union(&self.garbage).cloned().collect();
        assert_eq!(self.dir.layers(), expected, "after {what}");
        let saved: BTreeSet<String> = fs::read_dir(self.dir.path().join("pool/saved"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let snapshots = self.builds.values().filter(|build| build.snapshot.is_some());
        assert_eq!(saved, snapshots.map(|build| build.id.clone()).collect(), "after {what}");
    }
}

#[tokio::test]
async fn counting_references_agrees_with_mark_and_sweep() {
    for seed in (1..=6_u64).map(|seed| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        let mut model = Model::new(seed).await;
        for number in 0..200 {
            let what = model.step().await;
            model.check(&format!("step {number} of {seed:#x}: {what}"));
        }
        for build in model.builds.values() {
            assert_eq!(model.storage.build(&build.id).await.unwrap().as_ref(), Some(build));
        }
        for number in std::mem::take(&mut model.builds).into_keys() {
            assert!(model.storage.delete_build(&build_id(number)).await.unwrap());
        }
        for lease in std::mem::take(&mut model.leases) {
            lease.end().await.unwrap();
        }
        model.check("the end");
        drop(model.disk);
        model.service.shutdown().await;
    }
}
