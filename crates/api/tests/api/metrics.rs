//! Ranges of resource use.

use serde_json::{Value, json};

use crate::stack::{Stack, TEAM};

const HOUR: i64 = 3600;
/// A time that every step begins at.
const START: i64 = 1_800_000_000;

/// A sample every five seconds for `hours`, from `START` on: each uses as many percent of the
/// processor and bytes of memory as its number within its minute, 0 to 11.
async fn stack_with_samples(hours: i64) -> Stack {
    let stack = Stack::start().await;
    let last = START + hours * HOUR - 5;
    stack
        .sql(&format!(
            "WITH RECURSIVE times (t) AS (SELECT {START} UNION ALL SELECT t + 5 FROM times \
             WHERE t < {last}) INSERT INTO sandbox_metrics SELECT 'iabc', t, '{TEAM}', 2, \
             t % 60 / 5 + 0.005, t % 60 / 5, 100, 3, 4, 200 FROM times"
        ))
        .await;
    stack
}

async fn samples(stack: &Stack, query: &str) -> Vec<Value> {
    let answer = stack.get(&format!("/sandboxes/iabc/metrics{query}")).await.success(200);
    answer.as_array().unwrap().clone()
}

fn times(samples: &[Value]) -> Vec<i64> {
    samples.iter().map(|sample| sample["timestampUnix"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn the_step_grows_with_the_range() {
    let stack = stack_with_samples(30).await;
    for (seconds, step) in [
        (HOUR - 1, 5),
        (HOUR, 30),
        (6 * HOUR - 1, 30),
        (6 * HOUR, 60),
        (12 * HOUR, 120),
        (24 * HOUR, 300),
        (7 * 24 * HOUR, 900),
    ] {
        let found = samples(&stack, &format!("?start={START}&end={}", START + seconds)).await;
        let times = times(&found);
        assert_eq!(times[1] - times[0], step, "{seconds}");
        // The last point of each step, but for where the range or the samples end.
        let there = (seconds + 1).min(30 * HOUR);
        assert_eq!(times.len() as i64, (there + step - 1) / step, "{seconds}");
    }
    // Without bounds they are the sandbox's own: 30 hours less 5 seconds.
    assert_eq!(samples(&stack, "").await.len() as i64, 30 * HOUR / 300);
    let late = START + 29 * HOUR;
    assert_eq!(samples(&stack, &format!("?start={late}")).await.len(), 720);
    let early = START + HOUR / 2;
    assert_eq!(samples(&stack, &format!("?end={early}")).await.len(), 361);
}

#[tokio::test]
async fn a_point_is_the_average_of_its_step() {
    let stack = stack_with_samples(7).await;
    let found = samples(&stack, &format!("?start={START}&end={}", START + 6 * HOUR)).await;
    let point = &found[0];
    // 0 to 11 bytes, and 0.005 to 11.005 percent.
    assert_eq!((&point["memUsed"], &point["memTotal"]), (&json!(5), &json!(100)));
    assert!(point["cpuUsedPct"] == json!(5.5) || point["cpuUsedPct"] == json!(5.51), "{point}");
    assert_eq!((&point["cpuCount"], &point["diskTotal"]), (&json!(2), &json!(200)));
    assert_eq!(point["timestampUnix"], json!(START + 55));
    let exact = samples(&stack, &format!("?start={}&end={}", START + 5, START + 10)).await;
    assert_eq!(times(&exact), [START + 5, START + 10]);
    assert_eq!(exact[0]["memUsed"], json!(1));
    assert!(samples(&stack, "?start=0&end=1").await.is_empty());
    let after = START + 8 * HOUR;
    assert!(samples(&stack, &format!("?start={after}")).await.is_empty());
}
