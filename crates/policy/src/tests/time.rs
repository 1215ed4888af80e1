//! Time criteria: zones, day changes, daylight saving.

use jiff::{Span, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::facts::{anonymous, compile, lets_in};

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

fn holds(criterion: &Value, now: &str) -> bool {
    let mut facts = anonymous();
    facts.now = at(now);
    lets_in(criterion, &facts)
}

fn next(criterion: &Value, now: &str) -> Option<Timestamp> {
    compile(&json!({"allow": {"and": [criterion]}})).next_time_boundary(at(now))
}

#[test]
fn s39_date() {
    let year = json!({"date": {"after": "2025-01-02T16:20:00", "before": "2026-01-02T16:20:00"}});
    for (now, expected) in [
        ("2025-01-02T16:19:59.999999999Z", false),
        ("2025-01-02T16:20:00Z", true),
        ("2026-01-02T16:19:59Z", true),
        ("2026-01-02T16:20:00Z", false),
    ] {
        assert_eq!(holds(&year, now), expected, "{now}");
    }
    assert_eq!(
        next(&year, "2024-01-01T00:00:00Z"),
        Some(at("2025-01-02T16:20:00Z"))
    );
    assert_eq!(
        next(&year, "2025-01-02T16:20:00Z"),
        Some(at("2026-01-02T16:20:00Z"))
    );
    assert_eq!(next(&year, "2026-01-02T16:20:00Z"), None);
}

#[test]
fn s39_dates_are_local_to_a_zone_or_have_an_offset() {
    let berlin = json!({"date": {"timezone": "Europe/Berlin", "after": "2025-07-01"}});
    assert!(holds(&berlin, "2025-06-30T22:00:00Z"));
    assert!(!holds(&berlin, "2025-06-30T21:59:59Z"));
    let offset =
        json!({"date": {"timezone": "Europe/Berlin", "before": "2025-07-01T00:00:00-05:00"}});
    assert!(holds(&offset, "2025-07-01T04:59:59Z"));
    assert!(!holds(&offset, "2025-07-01T05:00:00Z"));
}

#[test]
fn s39_day_of_week_changes_at_midnight_of_the_zone() {
    // 2025-06-07 is a Saturday.
    let utc = json!({"day_of_week": "mon-fri"});
    assert!(holds(&utc, "2025-06-06T23:59:59Z"));
    assert!(!holds(&utc, "2025-06-07T00:00:00Z"));
    let tokyo = json!({"day_of_week": {"is": "sat,sun", "timezone": "Asia/Tokyo"}});
    assert!(!holds(&tokyo, "2025-06-06T14:59:59Z"));
    assert!(holds(&tokyo, "2025-06-06T15:00:00Z"));
    assert!(!holds(&tokyo, "2025-06-08T15:00:00Z"));
    assert_eq!(
        next(&tokyo, "2025-06-06T14:59:59Z"),
        Some(at("2025-06-06T15:00:00Z"))
    );
    assert!(holds(&json!({"day_of_week": "*"}), "2025-06-07T00:00:00Z"));
    assert_eq!(
        next(&json!({"day_of_week": "*"}), "2025-06-07T00:00:00Z"),
        None
    );
}

#[test]
fn s39_time_of_day() {
    let office =
        json!({"time_of_day": {"timezone": "America/Phoenix", "after": "9:00", "before": "5 PM"}});
    for (now, expected) in [
        ("2025-06-06T15:59:59Z", false),
        ("2025-06-06T16:00:00Z", true),
        ("2025-06-06T23:59:59Z", true),
        ("2025-06-07T00:00:00Z", false),
    ] {
        assert_eq!(holds(&office, now), expected, "{now}");
    }
    assert_eq!(
        next(&office, "2025-06-06T15:00:00Z"),
        Some(at("2025-06-06T16:00:00Z"))
    );
    assert_eq!(
        next(&office, "2025-06-06T16:00:00Z"),
        Some(at("2025-06-07T00:00:00Z"))
    );
    let after = json!({"time_of_day": {"timezone": "UTC", "after": "18:00"}});
    assert!(holds(&after, "2025-06-06T23:59:59Z") && !holds(&after, "2025-06-07T00:00:00Z"));
    assert_eq!(
        next(&after, "2025-06-06T20:00:00Z"),
        Some(at("2025-06-07T00:00:00Z"))
    );
    let before = json!({"time_of_day": {"timezone": "UTC", "before": "4:30PM"}});
    assert!(holds(&before, "2025-06-06T00:00:00Z") && !holds(&before, "2025-06-06T16:30:00Z"));
}

#[test]
fn s39_a_time_of_day_may_go_over_midnight() {
    let night = json!({"time_of_day": {"timezone": "UTC", "after": "22:00", "before": "06:00"}});
    for (now, expected) in [
        ("2025-06-06T21:59:59Z", false),
        ("2025-06-06T22:00:00Z", true),
        ("2025-06-07T05:59:59Z", true),
        ("2025-06-07T06:00:00Z", false),
    ] {
        assert_eq!(holds(&night, now), expected, "{now}");
    }
}

#[test]
fn s39_an_hour_that_daylight_saving_skips_does_not_happen() {
    let hour =
        json!({"time_of_day": {"timezone": "Europe/Berlin", "after": "2:00", "before": "3:00"}});
    // 2025-03-30: at 01:00Z the clock goes from 02:00 to 03:00.
    for now in [
        "2025-03-30T00:59:59Z",
        "2025-03-30T01:00:00Z",
        "2025-03-30T01:30:00Z",
    ] {
        assert!(!holds(&hour, now), "{now}");
    }
    assert!(holds(&hour, "2025-03-31T00:30:00Z"));
    let office =
        json!({"time_of_day": {"timezone": "Europe/Berlin", "after": "2:30", "before": "12:00"}});
    assert!(!holds(&office, "2025-03-30T00:59:59Z"));
    assert!(holds(&office, "2025-03-30T01:00:00Z"));
    assert_eq!(
        next(&office, "2025-03-30T00:00:00Z"),
        Some(at("2025-03-30T01:00:00Z"))
    );
}

#[test]
fn s39_an_hour_that_daylight_saving_repeats_happens_twice() {
    let hour =
        json!({"time_of_day": {"timezone": "Europe/Berlin", "after": "2:00", "before": "3:00"}});
    // 2025-10-26: at 01:00Z the clock goes from 03:00 back to 02:00.
    for (now, expected) in [
        ("2025-10-25T23:59:59Z", false),
        ("2025-10-26T00:00:00Z", true),
        ("2025-10-26T00:59:59Z", true),
        ("2025-10-26T01:00:00Z", true),
        ("2025-10-26T01:59:59Z", true),
        ("2025-10-26T02:00:00Z", false),
    ] {
        assert_eq!(holds(&hour, now), expected, "{now}");
    }
    let half =
        json!({"time_of_day": {"timezone": "Europe/Berlin", "after": "2:30", "before": "2:45"}});
    assert!(holds(&half, "2025-10-26T00:30:00Z") && holds(&half, "2025-10-26T01:30:00Z"));
    assert!(!holds(&half, "2025-10-26T00:50:00Z"));
    assert_eq!(
        next(&half, "2025-10-26T00:50:00Z"),
        Some(at("2025-10-26T01:00:00Z"))
    );
    assert_eq!(
        next(&half, "2025-10-26T01:00:00Z"),
        Some(at("2025-10-26T01:30:00Z"))
    );
}

#[test]
fn s39_a_day_that_a_zone_skips_does_not_happen() {
    // Samoa went from Thursday, 29 to Saturday, 31 December 2011.
    let friday = json!({"day_of_week": {"is": "fri", "timezone": "Pacific/Apia"}});
    assert!(!holds(&friday, "2011-12-30T09:59:59Z"));
    assert!(!holds(&friday, "2011-12-30T10:00:00Z"));
    assert!(holds(
        &json!({"day_of_week": {"is": "sat", "timezone": "Pacific/Apia"}}),
        "2011-12-30T10:00:00Z"
    ));
}

#[test]
fn the_next_boundary_of_a_policy_is_the_first_of_its_criteria() {
    let policy = compile(&json!([
        {"allow": {"or": [{"domain": "corp.test"}, {"day_of_week": "mon"}]}},
        {"deny": {"or": [{"time_of_day": {"timezone": "UTC", "after": "22:00"}}]}},
    ]));
    let boundary = policy.next_time_boundary(at("2025-06-06T20:00:00Z"));
    assert_eq!(boundary, Some(at("2025-06-06T22:00:00Z")));
    assert_eq!(
        compile(&json!([])).next_time_boundary(at("2025-06-06T20:00:00Z")),
        None
    );
}

const ZONES: [&str; 8] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",
    "Asia/Beirut",
    "Pacific/Apia",
    "Africa/Casablanca",
];

fn time_criterion() -> impl Strategy<Value = Value> {
    let time = (0..24, 0..4).prop_map(|(hour, quarter)| format!("{hour}:{:02}", quarter * 15));
    let zone = proptest::sample::select(&ZONES[..]);
    let day = proptest::sample::select(&["mon", "wed-fri", "sat,sun", "sun-tue"][..]);
    prop_oneof![
        (zone.clone(), time.clone(), time.clone())
            .prop_filter("not empty", |(_, after, before)| after != before)
            .prop_map(|(zone, after, before)| {
                json!({"time_of_day": {"timezone": zone, "after": after, "before": before}})
            }),
        (zone.clone(), time)
            .prop_map(|(zone, after)| json!({"time_of_day": {"timezone": zone, "after": after}})),
        (zone, day).prop_map(|(zone, day)| json!({"day_of_week": {"is": day, "timezone": zone}})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Until just before the boundary nothing changes, and the boundary is never far.
    #[test]
    fn s39_nothing_changes_before_the_next_boundary(
        criterion in time_criterion(),
        seconds in 1_293_840_000_i64..1_830_000_000,
        parts in proptest::collection::vec(0..2 * 86_400_i64, 16),
    ) {
        let policy = compile(&json!({"allow": {"and": [criterion]}}));
        let mut facts = anonymous();
        facts.now = Timestamp::from_second(seconds).unwrap();
        let verdict = facts.verdict(&policy);
        let boundary = policy.next_time_boundary(facts.now).unwrap();
        let length = boundary.as_second() - seconds;
        prop_assert!(length > 0 && length <= 2 * 86_400, "{length}");
        let start = facts.now;
        for part in parts {
            facts.now = start + Span::new().seconds(part % length);
            prop_assert_eq!(&facts.verdict(&policy), &verdict, "{}", facts.now);
        }
        facts.now = boundary - Span::new().nanoseconds(1);
        prop_assert_eq!(&facts.verdict(&policy), &verdict);
    }
}
