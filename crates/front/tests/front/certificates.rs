//! Which certificates are taken, which are refused and why, and when they are renewed.

use std::{fs, path::Path, time::Duration};

use atoll_core::error::codes;
use atoll_front::{Authority, Certificates};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use crate::stack::*;

/// Writes a self-signed certificate for `names`; returns it as PEM.
fn write(directory: &Path, names: &[&str], until: i32) -> String {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = CertificateParams::new(names).unwrap();
    parameters.not_before = date_time_ymd(2001, 1, 1);
    parameters.not_after = date_time_ymd(until, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap().pem();
    fs::write(directory.join("cert.pem"), &certificate).unwrap();
    fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
    certificate
}

fn files(directory: &Path) -> Certificates {
    Certificates::Files { certificate: directory.join("cert.pem"), key: directory.join("key.pem") }
}

#[tokio::test]
async fn the_local_authority_vouches_for_its_domain() {
    let stack = local().await;
    for name in ["sbx.localhost", "api.sbx.localhost", "8000-iabc.sbx.localhost"] {
        stack.tls(name, &["h2"]).await.unwrap();
    }
    for name in ["localhost", "example.com", "a.b.sbx.localhost", "127.0.0.1"] {
        assert!(stack.tls(name, &["h2"]).await.is_err(), "{name}");
    }
}

#[test]
fn an_authority_is_loaded_for_its_own_domain_only() {
    let made = Authority::generate(&domain()).unwrap();
    let load = |certificate: &str, key: &str, domain: &str| {
        Authority::load(certificate, key, &domain.parse().unwrap())
    };
    let (certificate, key) = (made.certificate_pem(), made.key_pem());
    assert!(load(certificate, &key, "sbx.localhost:8443").unwrap().is_some());
    for other in ["example.com", "x.sbx.localhost", "localhost.example.com"] {
        assert!(load(certificate, &key, other).unwrap().is_none(), "{other}");
    }
    let another = Authority::generate(&domain()).unwrap();
    assert!(load(certificate, &another.key_pem(), DOMAIN).is_err());
    assert!(load("", &key, DOMAIN).is_err());
    assert!(load(certificate, "", DOMAIN).is_err());
    assert!(load(&certificate[..certificate.len() / 2], &key, DOMAIN).is_err());
}

#[tokio::test]
async fn an_authority_that_was_loaded_goes_on_where_it_stopped() {
    let made = Authority::generate(&domain()).unwrap();
    let loaded = Authority::load(made.certificate_pem(), &made.key_pem(), &domain());
    let loaded = loaded.unwrap().unwrap();
    let trusted = made.certificate_pem().to_owned();
    let stack = stack(Certificates::Local(loaded.into()), trusted).await;
    stack.tls("api.sbx.localhost", &["h2"]).await.unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_with_the_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let names = ["sbx.localhost", "*.sbx.localhost"];
    let refused = async |what: &str| {
        let error = try_stack(files(directory), String::new()).await.err().unwrap();
        assert_eq!(error.code, codes::CERTIFICATE_UNUSABLE);
        assert!(error.message.contains(what), "{error} does not say {what}");
    };
    refused("cert.pem cannot be read").await;
    write(directory, &names, 2002);
    refused("cert.pem expired on").await;
    write(directory, &names, 2101);
    fs::write(directory.join("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    refused("key.pem is not the key of").await;
    fs::write(directory.join("key.pem"), "no key").unwrap();
    refused("key.pem holds no private key").await;
    fs::remove_file(directory.join("key.pem")).unwrap();
    refused("key.pem cannot be read").await;
    fs::write(directory.join("cert.pem"), "no certificate").unwrap();
    refused("cert.pem holds no certificate").await;
    fs::write(
        directory.join("cert.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    refused("cert.pem holds no valid certificate").await;
}

#[tokio::test]
async fn files_are_read_again_when_they_change_and_are_good() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path();
    let names = ["sbx.localhost", "*.sbx.localhost"];
    let first = write(directory, &names, 2101);
    let stack = stack(files(directory), first.clone()).await;
    let presents = async |certificate: &str| {
        tls(stack.address, certificate, "api.sbx.localhost", &["h2"]).await.is_ok()
    };
    assert!(presents(&first).await);
    fs::write(directory.join("cert.pem"), "half a file").unwrap();
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(60)).await;
    tokio::time::resume();
    assert!(presents(&first).await, "a file that cannot be used changes nothing");
    let second = write(directory, &names, 2101);
    let renewed = async {
        while !presents(&second).await {
            tokio::time::pause();
            tokio::time::sleep(Duration::from_secs(10)).await;
            tokio::time::resume();
        }
    };
    soon(renewed).await;
    assert!(!presents(&first).await);
}
