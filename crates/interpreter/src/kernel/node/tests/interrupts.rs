//! Interrupts, wherever they find the cell.

use super::*;

#[tokio::test]
async fn an_interrupt_ends_the_cell_and_state_stays() {
    let mut notebook = Notebook::start(false).await;
    notebook.run("let kept = 1").await;
    for code in [
        "console.log('on'); while (true) {}",
        "await 1; console.log('on'); for (;;);",
        "setTimeout(() => console.log('on')); await new Promise(() => { globalThis.r = setInterval(() => {}, 1e6) })",
        "console.log('on'); while (true) await null",
        "console.log('on'); for (;;) await new Promise((resolve) => setTimeout(resolve, 10))",
        "console.log('on'); require('child_process').execSync('sleep 300')",
        "({ [require('util').inspect.custom]() { console.log('on'); for (;;); } })",
        // Within Node's own callbacks, which it counts.
        "await new Promise(() => setTimeout(() => { console.log('on'); for (;;); }))",
        "await new Promise(() => setImmediate(() => { console.log('on'); for (;;); }))",
        "await new Promise(() => process.nextTick(() => { console.log('on'); for (;;); }))",
        "await new Promise(() => require('fs').stat('/', () => { console.log('on'); for (;;); }))",
        "await new Promise(() => setTimeout(() => {
            console.log('on'); require('child_process').execSync('sleep 300') }))",
        "new (require('async_hooks').AsyncResource)('a')
            .runInAsyncScope(() => { console.log('on'); for (;;); })",
    ] {
        notebook.node.begin(code, false).await.unwrap();
        notebook.until("on\n").await;
        notebook.node.interrupt().await;
        let did = notebook.follow().await.unwrap();
        let Some(Did::Failed(failure)) = did.last() else { panic!("{code}: {did:?}") };
        assert_eq!(failure.name, "Interrupted", "{code}");
        // One that comes too late does nothing to the next cell.
        notebook.node.interrupt().await;
        assert_eq!(notebook.value("kept").await, "1", "{code}");
    }
    let timers = "await new Promise((resolve) => setTimeout(() => setImmediate(() => resolve(2))))";
    assert_eq!(notebook.value(timers).await, "2");
}

#[tokio::test]
async fn an_interrupt_is_nothing_to_what_listens_for_errors() {
    let mut notebook = Notebook::start(false).await;
    notebook
        .run(
            "globalThis.heard = 0
            process.on('uncaughtException', () => { heard += 1 })
            0",
        )
        .await;
    let busy = "await new Promise(() => setTimeout(() => { console.log('on'); for (;;); }))";
    notebook.node.begin(busy, false).await.unwrap();
    notebook.until("on\n").await;
    notebook.node.interrupt().await;
    notebook.follow().await.unwrap();
    assert_eq!(notebook.value("heard").await, "0");
}
