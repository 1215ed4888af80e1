use proptest::prelude::*;

use super::super::client::ProbeTiming;
use super::*;

fn run(events: &[Event]) -> State {
    let now = Instant::now();
    events
        .iter()
        .cloned()
        .fold(State::new(), |state, event| next(state, event, now, 0.5))
}

#[test]
fn a_connection_is_no_sign_of_health() {
    assert_eq!(run(&[Event::Connected]), State::Probing { failures: 0 });
    assert_eq!(run(&[Event::Connected, Event::Serving]), State::Ready);
    let frozen = run(&[Event::Connected, Event::Silent]);
    assert!(
        matches!(frozen, State::Waiting { failures: 1, .. }),
        "{frozen:?}"
    );
}

#[test]
fn failures_are_counted_until_the_peer_serves() {
    let twice = [
        Event::Failed("refused".into()),
        Event::Due,
        Event::Connected,
        Event::Lost("reset".into()),
    ];
    assert!(matches!(run(&twice), State::Waiting { failures: 2, .. }));
    let served = [
        Event::Connected,
        Event::Serving,
        Event::Lost("reset".into()),
    ];
    assert!(matches!(run(&served), State::Waiting { failures: 1, .. }));
}

#[test]
fn c52_a_rejected_peer_gets_no_calls_until_it_accepts() {
    let mut events = vec![
        Event::Connected,
        Event::Rejected("shared secrets differ".into()),
    ];
    assert!(matches!(run(&events), State::Refusing { .. }));
    events.push(Event::Serving);
    assert_eq!(run(&events), State::Ready);
}

#[test]
fn pauses_double_up_to_half_a_second() {
    let pauses: Vec<_> = (1..=6)
        .map(|failures| pause(failures, 0.5).as_millis())
        .collect();
    assert_eq!(pauses, [100, 200, 400, 500, 500, 500]);
    assert!(pause(u32::MAX, 1.0) <= LONGEST_PAUSE.mul_f64(1.2));
    assert!(pause(0, 0.0) >= FIRST_PAUSE.mul_f64(0.8));
}

/// For a while every packet is lost. However the end of that falls, soon afterwards an attempt
/// begins of which nothing is lost, and what follows it still has a fifth of a second.
#[test]
fn c66_found_again_within_two_seconds() {
    let pause = LONGEST_PAUSE.mul_f64(1.2);
    let goal = Duration::from_millis(1800);
    // A SYN that was lost is sent again after a second (RFC 6298), so the longest gap is between
    // that one and the first of the next attempt.
    let again = Duration::from_secs(1);
    assert!(crate::rpc::driver::CONNECT + pause <= goal + again);
    // A connection that was made before, and has nothing come back on it ever.
    assert!(ProbeTiming::default().first_patience + pause <= goal);
}

#[test]
fn c66_a_frozen_peer_is_left_out_well_within_two_seconds() {
    let probes = ProbeTiming::default();
    assert!(probes.quick_interval + probes.quick_patience <= Duration::from_millis(1500));
    // One that is only slow stays.
    assert!(probes.quick_patience >= Duration::from_secs(1));
}

#[test]
fn a_penalty_fades() {
    let now = Instant::now();
    let mut penalty = Penalty::new(now);
    penalty.add(now);
    assert!((penalty.points(now) - 10.0).abs() < 0.001);
    assert!((penalty.points(now + Duration::from_secs(2)) - 5.0).abs() < 0.001);
    for _ in 0..100 {
        penalty.add(now);
    }
    assert!(penalty.points(now) <= 200.0);
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Due),
        Just(Event::Connected),
        Just(Event::Failed("f".into())),
        Just(Event::Lost("l".into())),
        Just(Event::Serving),
        Just(Event::NotServing),
        Just(Event::Silent),
        Just(Event::Rejected("r".into())),
    ]
}

proptest! {
    /// Ready is reached only by a peer's own word on a connection that has not been lost since.
    #[test]
    fn ready_needs_a_word_on_this_connection(events in prop::collection::vec(event(), 0..40)) {
        let now = Instant::now();
        let mut state = State::new();
        let mut connected = false;
        for event in events {
            let before = state.clone();
            state = next(state, event.clone(), now, 0.5);
            connected = match (&before, &event) {
                (State::Connecting { .. }, Event::Connected) => true,
                (_, Event::Lost(_) | Event::Silent | Event::Failed(_)) if state != before => false,
                _ => connected,
            };
            if state == State::Ready && before != State::Ready {
                prop_assert!(connected);
                prop_assert_eq!(event, Event::Serving);
            }
            if let State::Waiting { until, .. } = state {
                prop_assert!(until > now && until <= now + LONGEST_PAUSE.mul_f64(1.2));
            }
        }
    }
}
