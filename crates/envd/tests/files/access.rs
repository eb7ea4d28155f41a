//! Who may use the routes, and where paths start.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use atoll_envd::signature::{Claim, Operation};
use atoll_wire::guest::InitRequest;

use crate::fixture::{Fixture, RAW, daemon, encode, rights};

// Rules: SIGN-1
#[tokio::test]
async fn without_a_token_anybody_may() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.upload("a", "x").await.status, 200);
    assert_eq!(fixture.server.get(&fixture.target("a"), &[]).await.status, 200);
}

// Rules: GET-1, SIGN-2, SIGN-3, SIGN-4, SIGN-5, SIGN-6, SIGN-9, SIGN-12, TRAP-6
#[tokio::test]
async fn with_a_token_header_or_signature_decide() {
    let fixture = Fixture::new().await;
    let access_token = Some("tok".to_owned());
    fixture.guest.apply(InitRequest { access_token, ..InitRequest::default() }, None);
    fs::write(fixture.path("a b"), "x").unwrap();

    let path = fixture.text("a b");
    let sign = |operation, expiration| {
        let claim = Claim { path: &path, operation, username: "root", expiration };
        let mut query = format!("&username=root&signature={}", encode(&claim.sign("tok")));
        if let Some(expiration) = expiration {
            query.push_str(&format!("&signature_expiration={expiration}"));
        }
        query
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let target = fixture.target("a b");
    // A plus is a space, too.
    let plus = target.replace("%20", "+");
    for (target, headers, expected) in [
        (target.clone(), &[("x-access-token", "tok")][..], None),
        (
            target.clone() + &sign(Operation::Read, None),
            &[("x-access-token", "wrong")],
            Some("access token present in header but does not match"),
        ),
        (target.clone(), &[], Some("missing signature query parameter")),
        (target.clone() + "&signature=v1_x", &[], Some("invalid signature")),
        (target.clone() + &sign(Operation::Write, None), &[], Some("invalid signature")),
        (target.clone() + &sign(Operation::Read, None), &[], None),
        (plus + &sign(Operation::Read, Some(now + 60)), &[], None),
        (
            target.clone() + &sign(Operation::Read, Some(now - 60)),
            &[],
            Some("signature is already expired"),
        ),
    ] {
        let answer = fixture.server.get(&target, headers).await;
        match expected {
            None => assert_eq!(answer.body, "x", "{target}"),
            Some(message) => assert_eq!(answer.error(), (401, message.to_owned()), "{target}"),
        }
    }
    let write = target.clone() + &sign(Operation::Write, Some(now + 60));
    assert_eq!(fixture.server.post(&write, &[RAW], "new").await.status, 200);
    assert_eq!(fs::read(fixture.path("a b")).unwrap(), b"new");
    assert_eq!(rights(&fixture.path("a b")).1, 0, "the user of the link");
    let answer = fixture.server.post(&target, &[RAW], "newer").await;
    assert_eq!(answer.error().0, 401);
}

// Rules: GET-2, PUT-26, USER-6
#[tokio::test]
async fn an_unknown_user_is_refused() {
    let fixture = Fixture::new().await;
    let target = fixture.target("a") + "&username=nosuchuser";
    for answer in
        [fixture.server.get(&target, &[]).await, fixture.server.post(&target, &[RAW], "").await]
    {
        let (status, message) = answer.error();
        assert_eq!(status, 401);
        assert!(message.starts_with("error looking up user 'nosuchuser': "), "{message}");
    }
}

// Rules: PATH-1, PATH-2, PATH-3, PATH-4, GET-4, GET-5, TRAP-7
#[tokio::test]
async fn paths_start_at_the_users_home() {
    let fixture = Fixture::new().await;
    let home = daemon().home.display().to_string();
    let get = async |query: &str| fixture.server.get(&format!("/files{query}"), &[]).await.error();
    let missing = (404, format!("path '{home}/no/such' does not exist"));
    assert_eq!(get("?path=no/such").await, missing);
    assert_eq!(get("?path=~/x/../no//such").await, missing);
    assert_eq!(get("").await, (400, format!("path '{home}' is a directory")));
    assert_eq!(get("?path=~bob").await, (400, "cannot expand user-specific home dir".to_owned()));
    let default_workdir = Some("/tmp".to_owned());
    fixture.guest.apply(InitRequest { default_workdir, ..InitRequest::default() }, None);
    assert_eq!(get("").await, (400, "path '/tmp' is a directory".to_owned()));
    assert_eq!(get("?path=no/such").await, missing);
}
