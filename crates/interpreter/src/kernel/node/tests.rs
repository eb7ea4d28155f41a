use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::kernel::{
    Stream::{self, Stderr, Stdout},
    soon, until,
};

mod interrupts;

struct Notebook {
    node: Node,
    directory: tempfile::TempDir,
}

/// What a cell did, in order.
#[derive(Debug, PartialEq)]
enum Did {
    Printed(Stream, String),
    Showed(Value),
    Result(Value),
    Failed(Failure),
}

/// The Node that the tests of the SDK use, or the one of the system.
fn program() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-env/node-bin/node");
    if ours.exists() { ours } else { "node".into() }
}

impl Notebook {
    async fn start(typescript: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join(".kernel");
        fs::create_dir(&dir).unwrap();
        let launch = Launch { cwd: directory.path().into(), dir };
        let node = soon(Node::start_program(&program(), &launch, typescript)).await.unwrap();
        Self { node, directory }
    }

    async fn next(&mut self) -> Result<Event, Died> {
        soon(self.node.next()).await
    }

    async fn follow(&mut self) -> Result<Vec<Did>, Died> {
        let mut did = Vec::new();
        loop {
            did.push(match self.next().await? {
                Event::Started(_) => continue,
                Event::Printed { stream, text, .. } => Did::Printed(stream, text),
                Event::Shown { data, is_main: false } => Did::Showed(data.into()),
                Event::Shown { data, is_main: true } => Did::Result(data.into()),
                Event::Failed(failure) => Did::Failed(failure),
                Event::Done => return Ok(did),
            });
        }
    }

    async fn run(&mut self, code: &str) -> Vec<Did> {
        self.node.begin(code, false).await.unwrap();
        self.follow().await.unwrap()
    }

    /// The text of the value of a cell that does nothing else.
    async fn value(&mut self, code: &str) -> String {
        match self.run(code).await.as_slice() {
            [Did::Result(data)] => data["text/plain"].as_str().unwrap().to_owned(),
            [] => String::new(),
            other => panic!("{code}: {other:?}"),
        }
    }

    /// How a cell fails that does nothing else.
    async fn failure(&mut self, code: &str) -> Failure {
        let mut did = self.run(code).await;
        assert_eq!(did.len(), 1, "{code}: {did:?}");
        let Some(Did::Failed(failure)) = did.pop() else { panic!("{code}: {did:?}") };
        failure
    }

    async fn until(&mut self, wanted: &str) {
        loop {
            if let Event::Printed { text, .. } = self.next().await.unwrap()
                && text.contains(wanted)
            {
                return;
            }
        }
    }
}

fn out(text: &str) -> Did {
    Did::Printed(Stdout, text.to_owned())
}

fn err(text: &str) -> Did {
    Did::Printed(Stderr, text.to_owned())
}

#[tokio::test]
async fn random_numbers_fill_what_was_asked_for_and_no_more() {
    let mut notebook = Notebook::start(false).await;
    let cells = [
        ("const { randomBytes, randomFill, randomFillSync, randomInt } = require('crypto')", ""),
        ("const later = (draw) => new Promise((done) => draw((_, drawn) => done(drawn)))", ""),
        // All but once in 2^64.
        ("const drawn = (values) => values.some(Boolean)", ""),
        ("[randomBytes(8), await later((done) => randomBytes(8, done))].every(drawn)", "true"),
        ("randomBytes(70_000).subarray(65_536).some(Boolean)", "true"),
        ("const parts = [4, 8].map((at) => randomFillSync(new Uint32Array(9), at, 1))", ""),
        ("parts.push(await later((done) => randomFill(new Uint32Array(9), 2, 3, done))); ''", "''"),
        (
            "parts.map((part) => Array.from(part, (value) => (value ? 1 : 0)).join(''))",
            "[ '000010000', '000000001', '001110000' ]",
        ),
        ("const bytes = new ArrayBuffer(12); randomFillSync(bytes, 4) === bytes", "true"),
        ("new BigUint64Array(bytes.slice(4))[0] > 0n && new Uint32Array(bytes)[0] === 0", "true"),
        ("drawn(crypto.getRandomValues(new Uint16Array(8)))", "true"),
        ("new Set(Array.from({ length: 1000 }, () => randomInt(-1, 2))).size", "3"),
        ("await later((done) => randomInt(7, 8, done))", "7"),
        ("Math.max(...Array.from({ length: 1000 }, () => randomInt(3)))", "2"),
    ];
    for (code, value) in cells {
        assert_eq!(notebook.value(code).await, value, "{code}");
    }
    for code in ["randomInt(5, 5)", "randomBytes(-1)", "randomFillSync(Buffer.alloc(3), 1, 5)"] {
        assert_eq!(notebook.failure(code).await.name, "RangeError", "{code}");
    }
}

#[tokio::test]
async fn state_stays_and_the_last_value_is_the_result() {
    let mut notebook = Notebook::start(false).await;
    let cells = [
        ("let x = 1; x", "1"),
        ("const x = 2; class A { static y = 3 }; function f() { return 4 }; var v = 5", ""),
        ("let x = x0 = 6; const A = f; x + A() + v", "15"),
        ("'a'", "'a'"),
        ("undefined", ""),
        ("null", "null"),
        ("[1, { a: [2n, NaN, -0] }]", "[ 1, { a: [ 2n, NaN, -0 ] } ]"),
        ("-0", "-0"),
        ("10n", "10n"),
        ("Symbol('s')", "Symbol(s)"),
        ("await Promise.resolve(7)", "7"),
        ("Promise.resolve(Promise.resolve(8))", "8"),
        ("await new Promise((resolve) => setTimeout(resolve, 5)); const late = 9", ""),
        ("late", "9"),
        ("({ then: undefined, a: 1 })", "{ then: undefined, a: 1 }"),
        ("/* const */ `const ${x} import` // no newline", "'const 6 import'"),
        ("#!/usr/bin/env node\n1", "1"),
        ("", ""),
        ("// only a comment", ""),
    ];
    for (code, text) in cells {
        assert_eq!(notebook.value(code).await, text, "{code}");
    }
    notebook.node.begin("1", false).await.unwrap();
    let count = u64::try_from(cells.len()).unwrap() + 1;
    assert_eq!(notebook.next().await.unwrap(), Event::Started(count));
    notebook.follow().await.unwrap();
}

#[tokio::test]
async fn all_output_arrives_in_order() {
    let mut notebook = Notebook::start(false).await;
    let hello = notebook.run("console.log('Hello, World!')").await;
    assert_eq!(hello, [out("Hello, World!\n")]);
    let did = notebook
        .run(
            "console.log(1); console.log('two\\nlines'); console.error(3); process.stdout.write('4')
            display.html('<b>'); console.warn('\u{20ac}')
            const { execSync } = require('node:child_process')
            execSync('echo 5', { stdio: 'inherit' }); console.log(6)
            console.error(7)",
        )
        .await;
    let expected = [
        out("1\n"),
        out("two\nlines\n"),
        err("3\n"),
        out("4"),
        Did::Showed(json!({"text/html": "<b>"})),
        err("\u{20ac}\n"),
        out("5\n"),
        out("6\n"),
        err("7\n"),
    ];
    assert_eq!(did, expected);
    let did = notebook.run("console.log('\u{20ac}'.repeat(20_000_000)); console.log('end')").await;
    let length: usize =
        did.iter().map(|did| if let Did::Printed(_, text) = did { text.len() } else { 0 }).sum();
    assert_eq!(length, 60_000_005);
    assert!(
        did.iter().all(|did| !matches!(did, Did::Printed(_, text) if text.contains('\u{fffd}')))
    );
    assert_eq!(did.last(), Some(&out("end\n")));
}

#[tokio::test]
async fn output_is_told_as_it_comes() {
    let mut notebook = Notebook::start(false).await;
    let code = "console.log('before');
        while (!require('fs').existsSync('go')) await new Promise((r) => setTimeout(r, 1))
        'after'";
    notebook.node.begin(code, false).await.unwrap();
    notebook.until("before\n").await;
    fs::write(notebook.directory.path().join("go"), "").unwrap();
    let did = notebook.follow().await.unwrap();
    assert_eq!(did, [Did::Result(json!({"text/plain": "'after'"}))]);
}

#[tokio::test]
async fn values_are_shown_in_every_representation() {
    let mut notebook = Notebook::start(false).await;
    let did = notebook
        .run(
            "display({ a: 1 }); display.markdown('# m'); display.svg('<svg/>'); display.latex('$x$')
            display.json({ b: [2] }); display.javascript('js'); display.png(Buffer.from('png'))
            display.jpeg('anBlZw=='); display.pdf(new Uint8Array([1])); display('text')
            display.mime({ 'text/plain': 'p', 'x/y': { z: 3 } })
            const rich = { [Symbol.for('Jupyter.display')]: () => ({ 'text/html': '<i>' }) }
            display(rich)
            rich",
        )
        .await;
    let expected = [
        json!({"text/plain": "{ a: 1 }"}),
        json!({"text/markdown": "# m"}),
        json!({"image/svg+xml": "<svg/>"}),
        json!({"text/latex": "$x$"}),
        json!({"application/json": {"b": [2]}}),
        json!({"application/javascript": "js"}),
        json!({"image/png": "cG5n"}),
        json!({"image/jpeg": "anBlZw=="}),
        json!({"application/pdf": "AQ=="}),
        json!({"text/plain": "'text'"}),
        json!({"text/plain": "p", "x/y": {"z": 3}}),
        json!({"text/html": "<i>"}),
    ];
    let mut expected: Vec<_> = expected.into_iter().map(Did::Showed).collect();
    expected.push(Did::Result(json!({"text/html": "<i>"})));
    assert_eq!(did, expected);
}

#[tokio::test]
async fn failures_have_the_place_in_the_cell() {
    let mut notebook = Notebook::start(false).await;
    let cells = [
        ("nope", "ReferenceError", "nope is not defined", "\n    at <cell-1>:1:1"),
        (
            "\n  function f() { throw new RangeError('x') }\nf()",
            "RangeError",
            "x",
            "\n    at f (<cell-2>:2:24)\n    at <cell-2>:3:1",
        ),
        (
            "import fs from 'fs'; fs.readFileSync('/no/such')",
            "Error",
            "ENOENT: no such file or directory, open '/no/such'",
            "at <cell-3>:1:25",
        ),
        ("await 1; null.x", "TypeError", "Cannot read properties of null (reading 'x')", ":1:15"),
        ("Promise.reject(new Error('late'))", "Error", "late", "Error: late\n    at <cell-5>:1:16"),
        ("throw { a: 1 }", "Uncaught", "{ a: 1 }", "Uncaught { a: 1 }"),
        ("throw undefined", "Uncaught", "undefined", "Uncaught undefined"),
        (
            "1\nlet y = ;",
            "SyntaxError",
            "Unexpected token ';'",
            "<cell-8>:2\nlet y = ;\n        ^\n",
        ),
        ("throw new SyntaxError('own')", "SyntaxError", "own", "at <cell-9>:1:7"),
        (
            "import { nope } from 'node:fs'",
            "SyntaxError",
            "The requested module 'node:fs' does not provide an export named 'nope'",
            "",
        ),
        (
            "import nope from 'no-such-package'",
            "Error",
            "Cannot find package 'no-such-package' imported from",
            "ERR_MODULE_NOT_FOUND",
        ),
    ];
    for (code, name, value, traceback) in cells {
        let failure = notebook.failure(code).await;
        assert_eq!(failure.name, name, "{code}");
        assert!(failure.value.starts_with(value), "{code}: {failure:?}");
        assert!(failure.traceback.contains(traceback), "{code}: {failure:?}");
        for ours in [".kernel", "$atoll", "await void", "processTicks"] {
            assert!(!failure.traceback.contains(ours), "{code}: {failure:?}");
        }
    }
    assert_eq!(notebook.value("const y = 3; y").await, "3");
}

#[tokio::test]
async fn a_name_that_cannot_be_declared_again_comes_with_what_to_do() {
    let mut notebook = Notebook::start(false).await;
    notebook.run("function f() {}; let x").await;
    for (code, name) in [("const f = 1", "f"), ("import f from 'fs'", "f"), ("var x", "x")] {
        let failure = notebook.failure(code).await;
        let value = format!("Identifier '{name}' has already been declared in an earlier cell");
        assert!(failure.value.starts_with(&value), "{code}: {failure:?}");
        assert!(failure.value.contains("assign to it without declaring it"), "{failure:?}");
        assert_eq!(failure.traceback, format!("SyntaxError: {}", failure.value));
    }
    assert_eq!(notebook.value("f = 1; x = 2; f + x").await, "3");
    // Of one cell, it is the engine's.
    let failure = notebook.failure("let y; let y").await;
    assert_eq!(failure.value, "Identifier 'y' has already been declared");
    assert!(failure.traceback.contains("<cell-6>:1\nlet y; let y\n           ^"), "{failure:?}");
}

#[tokio::test]
async fn what_nobody_catches_is_said_and_ends_nothing() {
    let mut notebook = Notebook::start(false).await;
    let did = notebook
        .run(
            "setTimeout(() => { throw new Error('thrown') }, 1)
            await new Promise((resolve) => setTimeout(resolve, 30))",
        )
        .await;
    let [Did::Printed(Stderr, text)] = did.as_slice() else { panic!("{did:?}") };
    assert!(text.starts_with("Uncaught exception: Error: thrown\n    at Timeout"), "{text}");
    let did = notebook.run("Promise.reject(new Error('rejected')); 1").await;
    let [Did::Result(_), Did::Printed(Stderr, text)] = did.as_slice() else { panic!("{did:?}") };
    assert!(
        text.starts_with("Unhandled rejection: Error: rejected\n    at <cell-2>:1:16"),
        "{text}"
    );
    // Caught in time.
    let code = "const p = Promise.reject(1); await null; p.catch(() => {}); 2";
    assert_eq!(notebook.value(code).await, "2");
    // What a timer prints after its cell comes with the next, in full.
    notebook
        .run(
            "const { existsSync, writeFileSync } = require('fs')
            const timer = setInterval(() => {
                if (!existsSync('next')) return
                clearInterval(timer); console.log('later'); writeFileSync('a', '')
            }, 1)",
        )
        .await;
    std::fs::write(notebook.directory.path().join("next"), "").unwrap();
    until(|| notebook.directory.path().join("a").exists()).await;
    // A hidden one in between has no part in it.
    notebook.node.begin("0", true).await.unwrap();
    while notebook.next().await.unwrap() != Event::Done {}
    let did = notebook.run("3").await;
    assert_eq!(did, [out("later\n"), Did::Result(json!({"text/plain": "3"}))]);
}

#[tokio::test]
async fn modules_are_found_as_from_a_file_in_the_working_directory() {
    let mut notebook = Notebook::start(false).await;
    let root = notebook.directory.path().to_owned();
    let package = root.join("node_modules/pkg");
    fs::create_dir_all(&package).unwrap();
    fs::write(package.join("package.json"), r#"{"main": "./index.js"}"#).unwrap();
    fs::write(package.join("index.js"), "exports.name = 'pkg'").unwrap();
    fs::write(root.join("own.mjs"), "export default 1; export const b = 2; export { b as 'c d' }")
        .unwrap();
    fs::write(root.join("data.json"), r#"{"v": 3}"#).unwrap();
    fs::create_dir(root.join("sub")).unwrap();
    fs::write(root.join("sub/own.mjs"), "export default 'of sub'").unwrap();
    let cells = [
        ("import own, { b as c, 'c d' as d } from './own.mjs'\n[own, c, d]", "[ 1, 2, 2 ]"),
        ("all.b + own; import * as all from './own.mjs'", "3"),
        ("import own, * as every from './own.mjs'; own + every.b", "3"),
        ("import data from './data.json' with { type: 'json' }; data.v", "3"),
        ("import { name } from 'pkg'; import 'node:os'\nname + require('pkg').name", "'pkgpkg'"),
        ("const fs = require('fs'); typeof fs.readFileSync", "'function'"),
        ("import fs from 'node:fs'; typeof fs.readFileSync", "'function'"),
        ("(await import('./own.mjs')).b", "2"),
        (
            "const load = (m) => import(m); class I { import(x) { return x } }; new I().import(4)",
            "4",
        ),
        ("(await load('./own.mjs')).default", "1"),
        ("import.meta.dirname === process.cwd() && __dirname === process.cwd()", "true"),
        ("require.main === module && typeof require.resolve('pkg')", "'string'"),
        ("export const e = 5; export default function () {}", "[Function (anonymous)]"),
        ("export { e }; export * from './own.mjs'; e", "5"),
        ("process.chdir('sub'); (await import('./own.mjs')).default", "'of sub'"),
        ("process.argv.length", "1"),
    ];
    for (code, text) in cells {
        assert_eq!(notebook.value(code).await, text, "{code}");
    }
}

#[tokio::test]
async fn typescript_is_understood() {
    let mut notebook = Notebook::start(true).await;
    let cells = [
        ("let n: number = 3; interface I { a: string }; type T = I | null; n as unknown", "3"),
        ("enum E { A, B = 5 }; E.B", "5"),
        ("namespace N { export const q = 6 }; N.q + E.B", "11"),
        (
            "class P { constructor(private z: number) {} get() { return this.z } }; new P(7).get()",
            "7",
        ),
        ("function id<T>(x: T): T { return x }; id<number>(8)!", "8"),
        (
            "import type { X } from 'nowhere'; import { sep } from 'path'; sep satisfies string",
            "'/'",
        ),
        ("const late: Promise<number> = Promise.resolve(9); await late", "9"),
    ];
    for (code, text) in cells {
        assert_eq!(notebook.value(code).await, text, "{code}");
    }
    let failure =
        notebook.failure("let a: number = 1\nenum F { A }\n\n  throw new Error('x')").await;
    assert!(failure.traceback.contains("at <cell-8>:4:9"), "{failure:?}");
    let failure = notebook.failure("let b: string = 1;\nnope()").await;
    assert!(failure.traceback.contains("at <cell-9>:2:1"), "{failure:?}");
    let failure = notebook.failure("1\nlet = : number").await;
    assert_eq!((&*failure.name, &*failure.value), ("SyntaxError", "Expression expected"));
    assert!(failure.traceback.contains("<cell-10>:2\n"), "{failure:?}");
    assert!(failure.traceback.contains("let = : number\n      ^"), "{failure:?}");
}

#[tokio::test]
async fn what_typescript_has_and_node_has_not_is_named() {
    let mut notebook = Notebook::start(true).await;
    for (code, what, traceback) in [
        ("class A {\n  @d m() {}\n}", "decorators are", "<cell-1>:2\n  @d m() {}\n  ^\n"),
        ("export @d() class A {}", "decorators are", "<cell-2>:1\n"),
        ("enum E { B }\nclass A {\n @d x: number = 1 }", "decorators are", "<cell-3>:3\n @d x"),
        ("class A { accessor z: number = 1 }", "`accessor` fields are", "<cell-4>:1\nclass A"),
    ] {
        let failure = notebook.failure(code).await;
        assert_eq!(failure.name, "SyntaxError", "{code}");
        assert!(failure.value.contains(&format!("{what} not supported")), "{code}: {failure:?}");
        assert!(failure.traceback.starts_with(traceback), "{code}: {failure:?}");
        assert!(failure.traceback.ends_with(&failure.value), "{code}: {failure:?}");
    }
    assert_eq!(notebook.value("class C { accessor = '@d' }; new C().accessor").await, "'@d'");
}

#[tokio::test]
async fn its_death_is_told_after_what_it_said() {
    for (code, how) in [
        ("console.log('last'); process.exit(3)", "the kernel ended with exit code 3"),
        (
            "console.log('last'); require('child_process').execSync('kill -9 ' + process.pid)",
            "the kernel was killed",
        ),
    ] {
        let mut notebook = Notebook::start(false).await;
        notebook.node.begin(code, false).await.unwrap();
        assert_eq!(notebook.next().await.unwrap(), Event::Started(1));
        let mut printed = Vec::new();
        let died = loop {
            match notebook.next().await {
                Ok(Event::Printed { stream, text, .. }) => printed.push((stream, text)),
                Ok(other) => panic!("{other:?}"),
                Err(died) => break died,
            }
        };
        assert_eq!(printed, [(Stdout, "last\n".to_owned())], "{code}");
        assert!(died.0.starts_with(how), "{code}: {died}");
        assert!(notebook.node.begin("1", false).await.is_err());
    }
}

#[tokio::test]
async fn hidden_cells_leave_no_trace_but_what_they_did() {
    let mut notebook = Notebook::start(false).await;
    for (code, failed) in [("process.env.X = 'y'; console.log(1); 2", false), ("throw 1", true)] {
        notebook.node.begin(code, true).await.unwrap();
        let did = notebook.follow().await.unwrap();
        assert_eq!(did.len(), usize::from(failed), "{did:?}");
    }
    notebook.node.begin("process.env.X", false).await.unwrap();
    assert_eq!(notebook.next().await.unwrap(), Event::Started(1));
    assert_eq!(notebook.follow().await.unwrap(), [Did::Result(json!({"text/plain": "'y'"}))]);
}

#[tokio::test]
async fn a_program_that_is_no_node_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let launch = Launch { cwd: directory.path().into(), dir: directory.path().into() };
    let start = async |program: &str| {
        soon(Node::start_program(program.as_ref(), &launch, false)).await.unwrap_err().0
    };
    assert!(start("/no/such").await.starts_with("node cannot be started"));
    assert!(start("false").await.starts_with("the kernel ended with exit code 1"));
}

#[tokio::test]
async fn what_is_too_large_to_be_passed_on_is_said() {
    let mut notebook = Notebook::start(false).await;
    let failure = notebook.failure("display.html('x'.repeat(150_000_000))").await;
    assert_eq!(failure.name, "OutputTooLarge");
    assert!(failure.value.starts_with("150000"), "{}", failure.value);
    assert_eq!(notebook.value("1").await, "1");
}
