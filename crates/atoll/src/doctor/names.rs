//! Whether the names of a deployment lead to it in programs on this machine.

use std::{net::IpAddr, time::Duration};

use super::Finding;

/// A resolver that takes longer is of no use to a client either.
const LIMIT: Duration = Duration::from_secs(3);

/// Where the names below `domain` lead, as programs here look them up; none when they do not resolve.
pub(crate) async fn resolve(domain: &str) -> Option<IpAddr> {
    let name = format!("49983-isandbox.{domain}");
    let looked_up = tokio::time::timeout(LIMIT, tokio::net::lookup_host((name, 443))).await;
    looked_up.ok()?.ok()?.next().map(|address| address.ip())
}

/// How to make the names below `domain` resolve.
pub(crate) fn advice(domain: &str) -> String {
    if domain.ends_with(".localhost") {
        format!(
            "Debian, Ubuntu: apt-get install libnss-myhostname. Elsewhere: use systemd-resolved or \
             nss-myhostname, or give dnsmasq the line address=/{domain}/127.0.0.1. Without it the \
             SDKs work too, by E2B_API_URL and E2B_SANDBOX_URL of <data-dir>/env."
        )
    } else {
        format!(
            "Add the records {domain} and *.{domain} with this host's address to DNS. Without them \
             the SDKs on this machine work too, by E2B_API_URL and E2B_SANDBOX_URL of \
             <data-dir>/env."
        )
    }
}

/// The check of `atoll doctor`.
pub(crate) async fn check(domain: &str) -> Finding {
    match resolve(domain).await {
        Some(address) => {
            Finding::ok("names", format!("*.{domain} resolves to {address} in every program"))
        }
        None => Finding::warning(
            "names",
            format!(
                "*.{domain} does not resolve{}: sandbox addresses such as 3000-<id>.{domain} cannot \
                 be opened by name",
                if domain.ends_with(".localhost") { " (but in browsers and curl)" } else { "" }
            ),
            advice(domain),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_cannot_exist_is_a_warning_with_advice() {
        // RFC 6761: no resolver knows names below `invalid`.
        let finding = check("atoll.invalid").await;
        let text = serde_json::to_string(&finding).unwrap();
        assert!(text.contains("\"verdict\":\"warning\""), "{text}");
        assert!(text.contains("*.atoll.invalid"), "{text}");
    }
}
