//! nginx, serving and taking files on loopback: what the kernel and this disk allow a server that
//! does nothing else. A child of ours, with a configuration and files of its own.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

const START_LIMIT: Duration = Duration::from_secs(5);

/// A running nginx. Dropping it ends it.
pub(super) struct Nginx {
    child: Child,
    /// Where its files are, for clients.
    pub(super) url: String,
}

impl Nginx {
    /// Starts one below `directory`, with `files` as what it serves; `None` when nginx is not
    /// installed.
    ///
    /// # Errors
    /// When it is installed and does not come to listen.
    pub(super) async fn start(directory: &Path, files: &Path) -> io::Result<Option<Self>> {
        let mut unguessable = [0; 16];
        getrandom::fill(&mut unguessable).map_err(io::Error::other)?;
        let name = hex::encode(unguessable);
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let path = directory.join("nginx.conf");
        fs::write(&path, configuration(address, directory, files, &name))?;
        let spawned = Command::new("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(directory)
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut nginx = Self { child, url: format!("http://{address}/{name}") };
        nginx.wait_until_listening(address).await?;
        Ok(Some(nginx))
    }

    async fn wait_until_listening(&mut self, address: SocketAddr) -> io::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while let Err(error) = TcpStream::connect(address).await {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("nginx ended: {status}")));
            }
            if Instant::now() > deadline {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub(super) async fn stop(mut self) -> io::Result<()> {
        self.child.kill().await
    }
}

/// One process in the foreground, which writes nowhere else. Everybody on this machine can connect,
/// and whoever can may write: only who knows the name of the place finds it.
fn configuration(address: SocketAddr, directory: &Path, files: &Path, name: &str) -> String {
    let (directory, files) = (directory.display(), files.display());
    format!(
        "daemon off;
master_process off;
pid \"{directory}/nginx.pid\";
events {{}}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    client_max_body_size 0;
    client_body_temp_path \"{directory}/body\";
    proxy_temp_path \"{directory}/proxy\";
    fastcgi_temp_path \"{directory}/fastcgi\";
    uwsgi_temp_path \"{directory}/uwsgi\";
    scgi_temp_path \"{directory}/scgi\";
    server {{
        listen {address};
        location / {{ return 404; }}
        location /{name}/ {{ alias \"{files}/\"; dav_methods PUT; }}
    }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_under_the_name_only() {
        let address = SocketAddr::from(([127, 0, 0, 1], 81));
        let text = configuration(address, Path::new("/d"), Path::new("/f"), "n4m3");
        assert!(text.contains("listen 127.0.0.1:81;"));
        assert!(text.contains("location / { return 404; }"));
        assert!(text.contains("location /n4m3/ { alias \"/f/\"; dav_methods PUT; }"));
        assert_eq!(text.matches("dav_methods").count(), 1);
    }
}
