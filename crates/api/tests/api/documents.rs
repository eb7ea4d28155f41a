//! The documents made from the code.

use std::path::Path;

use reqwest::Method;

use crate::{
    rules::{Coverage, Rules},
    stack::{Stack, send},
};

/// Set this variable to write the file instead of comparing it:
/// `ATOLL_WRITE_DOCS=1 cargo test -p atoll-api documents`.
const WRITE: &str = "ATOLL_WRITE_DOCS";

#[test]
fn the_compatibility_table_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("docs/compatibility.md");
    let rules = Rules::parse(&std::fs::read_to_string(root.join("tests/rules.toml")).unwrap());
    let (rules, coverage) = (rules.unwrap(), Coverage::scan(&root).unwrap());
    let current = atoll_api::compatibility_markdown() + &rules.markdown(&coverage);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == current, "docs/compatibility.md is out of date; set {WRITE}=1 to write it");
    let problems = rules.problems(&coverage);
    assert!(problems.is_empty(), "tests/rules.toml:\n{}", problems.join("\n"));
}

#[tokio::test]
async fn the_openapi_document_has_every_built_endpoint() {
    let stack = Stack::start().await;
    let document = send(stack.anonymous(Method::GET, "/openapi.json")).await.success(200);
    let paths = document["paths"].as_object().unwrap();
    for (method, path) in atoll_api::built_endpoints() {
        let operation = &document["paths"][path][method.to_lowercase()];
        assert!(operation["responses"].is_object(), "{method} {path}");
    }
    let documented: usize = paths.values().map(|item| item.as_object().unwrap().len()).sum();
    assert_eq!(documented, atoll_api::built_endpoints().count());
    for schema in ["NewSandbox", "Sandbox", "ListedSandbox", "SandboxDetail", "Error"] {
        assert!(document["components"]["schemas"][schema].is_object(), "{schema}");
    }
    // Every reference leads somewhere.
    let text = document.to_string();
    for name in text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next()) {
        assert!(document["components"]["schemas"][name.unwrap()].is_object(), "{name:?}");
    }
}
