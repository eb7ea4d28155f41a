//! What sandboxes log.

use std::collections::BTreeMap;

use atoll_state::{
    Database,
    model::{Direction, LogQuery},
};
use atoll_wire::{log::LogLevel, node::LogLine};
use jiff::Timestamp;

use crate::fixture::Fixture;

const TEAM: &str = "team";

fn at(microseconds: i64) -> Timestamp {
    Timestamp::from_microsecond(microseconds).unwrap()
}

fn line(sandbox: &str, time: i64, sequence: u64) -> LogLine {
    LogLine {
        sandbox: sandbox.parse().unwrap(),
        team: TEAM.to_owned(),
        timestamp: at(time),
        sequence,
        level: LogLevel::Info,
        logger: "process".to_owned(),
        message: format!("line {sequence}"),
        fields: BTreeMap::from([("cmd".to_owned(), "é \"quoted\"\n\0".to_owned())]),
    }
}

/// All lines of `i1`, forward.
fn all() -> LogQuery {
    LogQuery {
        team: TEAM.to_owned(),
        sandbox: "i1".to_owned(),
        from: Timestamp::MIN,
        until: Timestamp::MAX,
        direction: Direction::Forward,
        level: LogLevel::Debug,
        search: String::new(),
        limit: 1000,
    }
}

async fn sequences(fixture: &impl Fixture, query: &LogQuery) -> Vec<u64> {
    let lines = fixture.db().logs(query).await.unwrap();
    lines.into_iter().map(|line| line.sequence).collect()
}

pub(crate) async fn lines_come_back_in_order_in_both_directions(fixture: &impl Fixture) {
    let lines = [line("i1", 20, 2), line("i1", 10, 3), line("i1", 20, 1), line("i2", 15, 4)];
    fixture.db().put_logs(&lines).await.unwrap();
    fixture.db().put_logs(&[]).await.unwrap();
    let forward = fixture.db().logs(&all()).await.unwrap();
    assert_eq!(forward, [lines[1].clone(), lines[2].clone(), lines[0].clone()]);
    let backward = LogQuery { direction: Direction::Backward, ..all() };
    assert_eq!(sequences(fixture, &backward).await, [2, 1, 3]);
    let unknown = LogQuery { sandbox: "i3".to_owned(), ..all() };
    assert!(sequences(fixture, &unknown).await.is_empty());
}

/// Pages as the API's clients make them: the next begins where time differs from what they have.
pub(crate) async fn pages_lose_no_line_and_repeat_none(fixture: &impl Fixture) {
    // Three lines at each time.
    let lines: Vec<LogLine> =
        (0..1500).map(|number| line("i1", i64::try_from(number / 3).unwrap(), number)).collect();
    // Stored in another order than theirs.
    let (even, odd): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.sequence % 2 == 0);
    fixture.db().put_logs(&odd).await.unwrap();
    fixture.db().put_logs(&even).await.unwrap();

    let mut seen = Vec::new();
    let mut query = LogQuery { limit: 30, ..all() };
    loop {
        let page = fixture.db().logs(&query).await.unwrap();
        let Some(last) = page.last() else { break };
        query.from = at(last.timestamp.as_microsecond() + 1);
        seen.extend(page.into_iter().map(|line| line.sequence));
    }
    assert!(seen.iter().copied().eq(0..1500));

    let mut back = Vec::new();
    let mut query = LogQuery { limit: 30, direction: Direction::Backward, ..all() };
    loop {
        let page = fixture.db().logs(&query).await.unwrap();
        let Some(last) = page.last() else { break };
        query.until = last.timestamp;
        back.extend(page.into_iter().map(|line| line.sequence));
    }
    assert!(back.iter().copied().eq((0..1500).rev()));

    // A limit inside of one time takes the same lines each time.
    let query = LogQuery { limit: 2, ..all() };
    assert_eq!(sequences(fixture, &query).await, [0, 1]);
    let query = LogQuery { limit: 2, direction: Direction::Backward, ..all() };
    assert_eq!(sequences(fixture, &query).await, [1499, 1498]);
    assert!(sequences(fixture, &LogQuery { limit: 0, ..all() }).await.is_empty());
}

pub(crate) async fn a_log_is_searched_by_level_text_and_time(fixture: &impl Fixture) {
    let levels = [LogLevel::Debug, LogLevel::Info, LogLevel::Warn, LogLevel::Error];
    let messages = ["Started", "100% done", "under_score", "it's \"Over\""];
    let lines: Vec<LogLine> = (0..4)
        .map(|number| LogLine {
            level: levels[number],
            message: messages[number].to_owned(),
            ..line("i1", number as i64, number as u64)
        })
        .collect();
    fixture.db().put_logs(&lines).await.unwrap();
    for (number, level) in levels.into_iter().enumerate() {
        let query = LogQuery { level, ..all() };
        let expected: Vec<u64> = (number as u64..4).collect();
        assert_eq!(sequences(fixture, &query).await, expected, "{level:?}");
    }
    for (search, expected) in [
        ("Started", vec![0]),
        ("started", vec![]),
        ("%", vec![1]),
        ("_", vec![2]),
        ("'", vec![3]),
        ("e", vec![0, 1, 2, 3]),
        ("process", vec![]),
    ] {
        let query = LogQuery { search: search.to_owned(), ..all() };
        assert_eq!(sequences(fixture, &query).await, expected, "{search}");
    }
    let query = LogQuery { from: at(1), until: at(3), ..all() };
    assert_eq!(sequences(fixture, &query).await, [1, 2]);
}

pub(crate) async fn another_team_sees_no_lines(fixture: &impl Fixture) {
    fixture.db().put_logs(&[line("i1", 1, 1)]).await.unwrap();
    let query = LogQuery { team: "other".to_owned(), ..all() };
    assert!(sequences(fixture, &query).await.is_empty());
}

pub(crate) async fn a_line_that_is_delivered_twice_is_kept_once(fixture: &impl Fixture) {
    let lines = [line("i1", 1, 1), line("i1", 1, 2)];
    fixture.db().put_logs(&lines[..1]).await.unwrap();
    fixture.db().put_logs(&lines).await.unwrap();
    assert_eq!(fixture.db().logs(&all()).await.unwrap(), lines);
}

pub(crate) async fn old_lines_and_too_many_are_pruned(fixture: &impl Fixture) {
    let lines: Vec<LogLine> = (0..25_000).map(|number| line("i1", 7, number)).collect();
    fixture.db().put_logs(&lines).await.unwrap();
    fixture.db().put_logs(&[line("i2", 9, 1), line("i1", 8, 1), line("i1", 9, 2)]).await.unwrap();
    fixture.db().prune_logs(at(9), 1000).await.unwrap();
    assert_eq!(sequences(fixture, &all()).await, [2]);
    fixture.db().prune_logs(at(0), 1).await.unwrap();
    assert_eq!(sequences(fixture, &all()).await, [2]);
    let other = LogQuery { sandbox: "i2".to_owned(), ..all() };
    assert!(sequences(fixture, &other).await.is_empty());
}
