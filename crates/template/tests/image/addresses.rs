//! A registry may be anyone's: it must not become a way to what this node can reach.

use atoll_core::error::codes;
use atoll_template::image::{Registries, resolve};
use atoll_wire::build::Credentials;

use crate::support::{response, serve};

fn password() -> Option<Credentials> {
    Some(Credentials::Basic { username: "user".to_owned(), password: "hidden".to_owned() })
}

#[tokio::test]
async fn an_address_that_is_not_public_is_refused_unless_listed() {
    let (address, asked) = serve(|_| response("404 Not Found", "", ""));
    let port = address.port();
    for reference in [
        format!("127.0.0.1:{port}/x"),
        // A name that leads there.
        format!("localhost:{port}/x"),
        format!("127.1:{port}/x"),
        format!("[::1]:{port}/x"),
        format!("[::ffff:127.0.0.1]:{port}/x"),
        "169.254.169.254/x".to_owned(),
        "10.0.0.1/x".to_owned(),
    ] {
        let error = resolve(&reference, password().as_ref(), &Registries::default()).await;
        let error = error.err().unwrap();
        assert_eq!(error.code, codes::REGISTRY_REFUSED, "{reference}: {error}");
    }
    // Listed with TLS only.
    let registries = Registries::parse(&[address.to_string()]).unwrap();
    let error = resolve(&format!("{address}/x"), None, &registries).await.err().unwrap();
    assert_eq!(error.code, codes::IMAGE_UNAVAILABLE, "{error}");
    assert!(asked.all().iter().all(|request| !request.starts_with("GET ")));
}

#[tokio::test]
async fn a_registry_leads_nowhere_that_may_not_be_asked() {
    let (canary, asked) = serve(|_| response("200 OK", "", "secret"));
    for target in [
        format!("http://{canary}/secret"),
        format!("https://{canary}/secret"),
        format!("https://localhost:{}/secret", canary.port()),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "https://169.254.169.254/latest/meta-data/".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let to = target.clone();
        let (redirecting, _) =
            serve(move |_| response("307 Temporary Redirect", &format!("Location: {to}\r\n"), ""));
        let to = target.clone();
        let (challenging, _) = serve(move |_| {
            let challenge = format!("WWW-Authenticate: Bearer realm=\"{to}\",service=\"s\"\r\n");
            response("401 Unauthorized", &challenge, "")
        });
        for host in [redirecting, challenging] {
            let registries = Registries::parse(&[format!("http://{host}")]).unwrap();
            for credentials in [None, password()] {
                let result = resolve(&format!("{host}/x"), credentials.as_ref(), &registries).await;
                let error = result.err().unwrap();
                let expected = [codes::REGISTRY_REFUSED, codes::IMAGE_UNAVAILABLE];
                let expected = if credentials.is_none() { &expected[..1] } else { &expected[..] };
                assert!(expected.contains(&error.code), "{target}: {error}");
                assert!(!error.to_string().contains("hidden"));
            }
        }
    }
    assert!(asked.all().is_empty(), "{:?}", asked.all());
}

#[tokio::test]
async fn credentials_stay_with_the_registry() {
    let (other, asked) = serve(|_| response("404 Not Found", "", ""));
    let (registry, first) = serve(move |request| {
        if request.to_ascii_lowercase().contains("authorization: basic") {
            return response("302 Found", &format!("Location: http://{other}/x\r\n"), "");
        }
        response("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", "")
    });
    let list = [format!("http://{registry}"), format!("http://{other}")];
    let registries = Registries::parse(&list).unwrap();
    let result = resolve(&format!("{registry}/x"), password().as_ref(), &registries).await;
    assert_eq!(result.err().unwrap().code, codes::IMAGE_UNAVAILABLE);
    assert_eq!(first.all().len(), 2);
    assert_eq!(asked.all().len(), 1);
    assert!(!asked.all()[0].to_ascii_lowercase().contains("authorization"));
}

#[tokio::test]
async fn redirects_and_answers_have_an_end() {
    let (circle, asked) = serve(|_| response("302 Found", "Location: /again\r\n", ""));
    let (flood, _) = serve(|_| response("200 OK", "", &" ".repeat(5 << 20)));
    let (fault, _) = serve(|_| response("500 Internal Server Error", "", "x"));
    let (limited, _) = serve(|_| {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\u001b[2J down"}]}"#;
        response("429 Too Many Requests", "", body)
    });
    for (host, code, expected) in [
        (circle, codes::IMAGE_UNAVAILABLE, "redirects without end"),
        (flood, codes::IMAGE_REFUSED, "more than"),
        (fault, codes::IMAGE_UNAVAILABLE, "500"),
        (limited, codes::IMAGE_UNAVAILABLE, "TOOMANYREQUESTS: slow [2J down"),
    ] {
        let registries = Registries::parse(&[format!("http://{host}")]).unwrap();
        let error = resolve(&format!("{host}/x"), None, &registries).await.err().unwrap();
        assert_eq!(error.code, code);
        assert!(error.message.contains(expected), "{error}");
    }
    assert!(asked.all().len() < 30);
}
