//! The `filesystem.Filesystem` Connect service.
//!
//! | module | what it does |
//! |---|---|
//! | [`ops`] | look, make, move, remove |
//! | [`list`] | walk a tree |
//! | [`entry`] | what clients are told about a file |
//! | [`watch`] | one watched directory |
//! | [`feed`], [`pollers`] | its two flavours: a stream, and a name to poll |
//!
//! Work on the file system is done on blocking threads, as root.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use atoll_wire::rpc::filesystem as wire;
use connectrpc::{
    ConnectError, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};

use crate::guest::Guest;
use crate::process::feed::FeedOptions;
use crate::users::User;
use crate::{auth, disk, legacy, paths};

pub mod entry;
pub mod feed;
pub mod list;
pub mod ops;
pub mod pollers;
pub mod watch;

use pollers::Pollers;
use watch::{Watch, WatchError, WatchOptions};

/// File systems whose changes other machines make unseen: NFS, SMB, CIFS, SMB2, FUSE.
const NETWORK_FILE_SYSTEMS: [u32; 5] = [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546];

/// The Filesystem service.
pub struct FilesystemService {
    guest: Arc<Guest>,
    pollers: Pollers,
}

impl FilesystemService {
    /// The service of a sandbox.
    pub fn new(guest: Arc<Guest>) -> Self {
        Self { guest, pollers: Pollers::new(pollers::MAX_WATCHERS) }
    }

    /// The caller, and what a path means to them.
    fn resolve(&self, ctx: &RequestContext, path: &str) -> Result<(User, PathBuf), ConnectError> {
        let user = auth::rpc_user(ctx, &self.guest)?;
        let path = self.resolve_for(&user, path)?;
        Ok((user, path))
    }

    fn resolve_for(&self, user: &User, path: &str) -> Result<PathBuf, ConnectError> {
        paths::resolve(path, user, self.guest.default_workdir().as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))
    }

    async fn start_watch(
        &self,
        ctx: &RequestContext,
        path: &str,
        options: WatchOptions,
        allow_network: bool,
    ) -> Result<Watch, ConnectError> {
        let (_, path) = self.resolve(ctx, path)?;
        run(move || {
            check_watchable(&path, allow_network)?;
            Watch::start(path.clone(), options).map_err(|error| match error {
                WatchError::Limit(_) => ConnectError::resource_exhausted(error.to_string()),
                _ => ConnectError::internal(format!("error watching {}: {error}", path.display())),
            })
        })
        .await
    }
}

fn check_watchable(path: &Path, allow_network: bool) -> Result<(), ConnectError> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => {
            let message = format!("path {shown} not a directory");
            return Err(ConnectError::invalid_argument(message));
        }
        Err(error) if disk::is_missing(&error) => {
            return Err(ConnectError::not_found(format!("path {shown} not found: {error}")));
        }
        Err(error) => {
            let message = format!("error getting file info of {shown}: {error}");
            return Err(ConnectError::internal(message));
        }
    }
    if allow_network {
        return Ok(());
    }
    let file_system = rustix::fs::statfs(path).map_err(|error| {
        ConnectError::internal(format!("error getting the file system of {shown}: {error}"))
    })?;
    if is_network(i128::from(file_system.f_type)) {
        let message = format!("cannot watch path on network filesystem: {shown}");
        return Err(ConnectError::invalid_argument(message));
    }
    Ok(())
}

/// The kernel's word for the type has another width on each architecture; 32 bits count.
fn is_network(file_system: i128) -> bool {
    NETWORK_FILE_SYSTEMS.iter().any(|magic| file_system & 0xffff_ffff == i128::from(*magic))
}

/// What a client asked to see; one of the first generation knows no entries in events.
fn watch_options(ctx: &RequestContext, recursive: bool, include_entry: bool) -> WatchOptions {
    let include_entry = include_entry && !legacy::is_legacy(ctx.headers());
    WatchOptions { recursive, include_entry }
}

/// Runs `work` where it may block.
async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    disk::blocking(work).await.map_err(|error| ConnectError::internal(error.to_string()))?
}

/// Tells a walk that nobody waits for it any more.
struct AbandonOnDrop(Arc<AtomicBool>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[allow(refining_impl_trait)]
impl wire::Filesystem for FilesystemService {
    async fn stat(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::StatRequest>,
    ) -> ServiceResult<wire::StatResponse> {
        let (_, path) = self.resolve(&ctx, request.path)?;
        let entry = run(move || ops::stat(&path)).await?;
        let entry = legacy::entry(ctx.headers(), entry).into();
        Response::ok(wire::StatResponse { entry, ..Default::default() })
    }

    async fn make_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::MakeDirRequest>,
    ) -> ServiceResult<wire::MakeDirResponse> {
        let (user, path) = self.resolve(&ctx, request.path)?;
        let entry = run(move || ops::make_dir(&path, &user)).await?;
        let entry = legacy::entry(ctx.headers(), entry).into();
        Response::ok(wire::MakeDirResponse { entry, ..Default::default() })
    }

    async fn r#move(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::MoveRequest>,
    ) -> ServiceResult<wire::MoveResponse> {
        let (user, source) = self.resolve(&ctx, request.source)?;
        let destination = self.resolve_for(&user, request.destination)?;
        let entry = run(move || ops::rename(&source, &destination, &user)).await?;
        let entry = legacy::entry(ctx.headers(), entry).into();
        Response::ok(wire::MoveResponse { entry, ..Default::default() })
    }

    async fn list_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::ListDirRequest>,
    ) -> ServiceResult<wire::ListDirResponse> {
        let (_, path) = self.resolve(&ctx, request.path)?;
        let depth = request.depth;
        let abandoned = Arc::new(AtomicBool::new(false));
        let _guard = AbandonOnDrop(Arc::clone(&abandoned));
        let entries = run(move || list::list(&path, depth, &abandoned)).await?;
        let entries =
            entries.into_iter().map(|entry| legacy::entry(ctx.headers(), entry)).collect();
        Response::ok(wire::ListDirResponse { entries, ..Default::default() })
    }

    async fn remove(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::RemoveRequest>,
    ) -> ServiceResult<wire::RemoveResponse> {
        let (_, path) = self.resolve(&ctx, request.path)?;
        run(move || ops::remove(&path)).await?;
        Response::ok(wire::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<wire::WatchDirResponse>> {
        let feed_options = FeedOptions::from_context(&ctx);
        let options = watch_options(&ctx, request.recursive, request.include_entry);
        let watch =
            self.start_watch(&ctx, request.path, options, request.allow_network_mounts).await?;
        let stream = feed::feed(watch, feed_options)?;
        Ok(Response::stream(stream).with_header("x-accel-buffering", "no"))
    }

    async fn create_watcher(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, wire::CreateWatcherRequest>,
    ) -> ServiceResult<wire::CreateWatcherResponse> {
        let options = watch_options(&ctx, request.recursive, request.include_entry);
        let watch =
            self.start_watch(&ctx, request.path, options, request.allow_network_mounts).await?;
        let watcher_id = self.pollers.add(watch)?;
        Response::ok(wire::CreateWatcherResponse { watcher_id, ..Default::default() })
    }

    async fn get_watcher_events(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::GetWatcherEventsRequest>,
    ) -> ServiceResult<wire::GetWatcherEventsResponse> {
        let events = self.pollers.poll(request.watcher_id).await?;
        Response::ok(wire::GetWatcherEventsResponse { events, ..Default::default() })
    }

    async fn remove_watcher(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, wire::RemoveWatcherRequest>,
    ) -> ServiceResult<wire::RemoveWatcherResponse> {
        self.pollers.remove(request.watcher_id)?;
        Response::ok(wire::RemoveWatcherResponse::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: WATCH-3
    #[test]
    fn network_file_systems_are_told_by_their_number() {
        assert!(is_network(0x6969));
        assert!(is_network(0xff53_4d42));
        assert!(is_network(i128::from(0xff53_4d42_u32 as i32)), "as 32 bits with a sign");
        assert!(is_network(0x6573_5546));
        assert!(!is_network(0xef53), "ext4");
        assert!(!is_network(0x794c_7630), "overlay");
    }
}
