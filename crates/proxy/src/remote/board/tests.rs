use postern_common::authz::{CheckSubject, Deny, DenyKind};
use postern_common::config::RouteId;
use postern_common::rpc::Transport;
use tonic::service::Routes;

use super::*;
use crate::open::tests::question;

/// A board, its replicas, and the time.
struct Play {
    board: Board,
    now: Instant,
    replicas: Vec<Replica>,
}

struct Replica {
    link: Rc<Link>,
    stream: mpsc::Receiver<Outgoing>,
}

impl Replica {
    /// The numbers of the questions that came since the last time.
    fn questions(&mut self) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Ok(outgoing) = self.stream.try_recv() {
            if let Outgoing::Question(number, _) = outgoing {
                numbers.push(number);
            }
        }
        numbers
    }
}

impl Play {
    fn with(replicas: usize) -> Self {
        let mut play = Self {
            board: Board::new(),
            now: Instant::now(),
            replicas: Vec::new(),
        };
        for index in 0..replicas {
            let link = Rc::new(Link::new(Transport::local(Routes::default())));
            play.board.join(Rc::clone(&link));
            let stream = mpsc::channel(1).1;
            play.replicas.push(Replica { link, stream });
            play.open(index);
        }
        play
    }

    fn open(&mut self, index: usize) {
        let (outgoing, stream) = mpsc::channel(100);
        let replica = &mut self.replicas[index];
        replica.stream = stream;
        let link = Rc::clone(&replica.link);
        self.board.opened(&link, outgoing, self.now);
    }

    fn lose(&mut self, index: usize) {
        let link = Rc::clone(&self.replicas[index].link);
        self.board.lost(&link, self.now);
    }

    fn ask(&mut self) -> oneshot::Receiver<Answer> {
        self.board
            .ask(question(), Duration::from_secs(10), self.now)
            .expect("a place")
            .1
    }

    /// Which replica has the only question, and its number.
    fn who_was_asked(&mut self) -> (usize, u64) {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1, "{asked:?}");
        asked.remove(0)
    }

    /// Replicas and numbers of all questions since the last time.
    fn asked(&mut self) -> Vec<(usize, u64)> {
        let replicas = self.replicas.iter_mut().enumerate();
        let asked = replicas.flat_map(|(index, replica)| {
            let numbers = replica.questions().into_iter();
            numbers.map(move |number| (index, number))
        });
        asked.collect()
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now += Duration::from_millis(milliseconds);
        self.board.tend(self.now);
    }

    fn decide(&mut self, index: usize, number: u64, decision: Decision) {
        self.answer(index, number, &Ok(decision));
    }

    fn refuse(&mut self, index: usize, number: u64, refusal: AuthorizeError) {
        self.answer(index, number, &Err(refusal));
    }

    fn answer(&mut self, index: usize, number: u64, answer: &Answer) {
        let answer = wire::answer(number, &CheckSubject::OwnEndpoint, answer, 0);
        let link = Rc::clone(&self.replicas[index].link);
        self.board.answered(&link, answer, self.now);
        self.board.heard(&link, self.now);
    }
}

fn yes() -> Decision {
    Decision::Allow(Box::default())
}

fn no() -> Decision {
    Decision::Deny(Box::new(Deny {
        kind: DenyKind::Forbidden,
        message: String::new(),
        reasons: Vec::new(),
        headers: Vec::new(),
        details: None,
    }))
}

fn cannot() -> AuthorizeError {
    AuthorizeError::DataUnavailable {
        reason: "not now".to_owned(),
    }
}

fn is_unreachable(answer: &mut oneshot::Receiver<Answer>) -> bool {
    matches!(
        answer.try_recv(),
        Ok(Err(AuthorizeError::Unreachable { .. }))
    )
}

#[test]
fn c03_every_replica_has_its_share() {
    let mut play = Play::with(2);
    let _open: Vec<_> = (0..100).map(|_| play.ask()).collect();
    let counts = [0, 1].map(|index| play.replicas[index].link.open());
    assert_eq!(counts, [50, 50], "the less burdened of two");
    let mut play = Play::with(2);
    let mut first = 0;
    for _ in 0..200 {
        let _answered = play.ask();
        let (index, number) = play.who_was_asked();
        first += usize::from(index == 0);
        play.decide(index, number, yes());
    }
    assert!((60..=140).contains(&first), "{first} of 200 at rest");
}

#[test]
fn c66_an_unanswered_question_is_asked_elsewhere_and_the_first_answer_counts() {
    let mut play = Play::with(2);
    let mut answered = play.ask();
    let (slow, number) = play.who_was_asked();
    play.pass(299);
    assert!(play.asked().is_empty());
    play.pass(1);
    let (other, same) = play.who_was_asked();
    assert_eq!((other, same), (1 - slow, number));
    play.pass(1000);
    assert!(play.asked().is_empty(), "there is nobody else");
    play.decide(other, number, no());
    assert!(matches!(answered.try_recv(), Ok(Ok(Decision::Deny(_)))));
    // What comes too late means nothing any more.
    play.decide(slow, number, yes());
    assert!(play.board.is_empty());
    assert_eq!(play.replicas[slow].link.open(), 0);
}

#[test]
fn second_questions_have_a_budget() {
    let mut play = Play::with(2);
    let _open: Vec<_> = (0..100).map(|_| play.ask()).collect();
    assert_eq!(play.asked().len(), 100);
    play.pass(300);
    let second = play.asked().len();
    assert!((32..=60).contains(&second), "{second} of 100");
}

#[test]
fn c66_a_silent_replica_gives_its_questions_away_and_comes_back() {
    let mut play = Play::with(2);
    let mut open: Vec<_> = (0..100).map(|_| play.ask()).collect();
    let silent: Vec<_> = play.replicas[0].questions();
    let _ = play.asked();
    play.pass(200);
    let link = Rc::clone(&play.replicas[1].link);
    play.board.heard(&link, play.now);
    play.pass(150);
    assert_eq!(play.replicas[0].link.standing(), Standing::Doubtful);
    assert_eq!(play.replicas[1].link.standing(), Standing::Well);
    let _ = play.asked();
    // Its connection was tried.
    play.replicas[0].link.silent();
    play.board.heard(&link, play.now);
    play.pass(50);
    let _ = play.asked();
    for number in &silent {
        play.decide(1, *number, yes());
    }
    let answers = open.iter_mut().filter_map(|open| open.try_recv().ok());
    assert_eq!(answers.count(), silent.len(), "all of its questions");
    let _more = play.ask();
    assert_eq!(play.who_was_asked().0, 1);
    let link = Rc::clone(&play.replicas[0].link);
    play.board.heard(&link, play.now);
    assert_eq!(link.standing(), Standing::Well);
    let _more = play.ask();
    assert_eq!(play.who_was_asked().0, 0, "it has the fewest questions");
}

#[test]
fn c66_with_nobody_a_question_waits_a_second() {
    let mut play = Play::with(1);
    play.lose(0);
    let (mut early, mut late) = (play.ask(), play.ask());
    play.pass(999);
    assert!(early.try_recv().is_err());
    drop(play.ask());
    play.pass(1);
    assert!(is_unreachable(&mut early));
    assert!(is_unreachable(&mut late));
    let mut lucky = play.ask();
    play.pass(999);
    play.open(0);
    let number = play
        .asked()
        .last()
        .map(|(_, number)| *number)
        .expect("asked");
    play.decide(0, number, yes());
    assert!(matches!(lucky.try_recv(), Ok(Ok(_))));
}

#[test]
fn c66_with_all_of_them_silent_a_question_waits_a_second() {
    let mut play = Play::with(2);
    let mut open = play.ask();
    play.pass(300);
    for replica in &play.replicas {
        replica.link.doubt();
        replica.link.silent();
    }
    play.pass(699);
    assert!(open.try_recv().is_err());
    play.pass(1);
    assert!(is_unreachable(&mut open));
}

#[test]
fn c66_a_question_whose_stream_is_lost_waits_a_little_longer() {
    let mut play = Play::with(1);
    let mut open = play.ask();
    play.pass(950);
    play.lose(0);
    play.pass(499);
    assert!(open.try_recv().is_err());
    play.pass(1);
    assert!(is_unreachable(&mut open));
}

#[test]
fn c66_only_so_many_wait() {
    let mut play = Play::with(0);
    let _waiting: Vec<_> = (0..WAITING).map(|_| play.ask()).collect();
    let more = play
        .board
        .ask(question(), Duration::from_secs(10), play.now);
    assert!(matches!(more, Err(AuthorizeError::Unreachable { .. })));
    play.pass(1000);
    assert!(play.board.is_empty());
}

#[test]
fn c02_what_is_open_on_a_broken_stream_goes_elsewhere() {
    let mut play = Play::with(2);
    let mut open: Vec<_> = (0..10).map(|_| play.ask()).collect();
    let first = play.replicas[0].questions();
    assert_eq!(first.len(), 5);
    let _ = play.asked();
    play.lose(0);
    let moved: Vec<_> = play.asked().into_iter().map(|(_, number)| number).collect();
    assert_eq!(moved, first);
    play.lose(1);
    assert!(play.asked().is_empty());
    play.open(0);
    for (index, number) in play.asked() {
        play.decide(index, number, yes());
    }
    assert!(open.iter_mut().all(|open| open.try_recv().is_ok()));
}

#[test]
fn a_replica_that_leaves_answers_what_it_has() {
    let mut play = Play::with(2);
    let mut open = play.ask();
    let (leaving, number) = play.who_was_asked();
    play.replicas[leaving].link.leave();
    let _more: Vec<_> = (0..5).map(|_| play.ask()).collect();
    assert!(play.asked().iter().all(|(index, _)| *index != leaving));
    play.decide(leaving, number, yes());
    assert!(matches!(open.try_recv(), Ok(Ok(_))));
}

#[test]
fn a_replica_that_drains_is_asked_only_while_there_is_no_other() {
    let mut play = Play::with(1);
    let draining = Rc::clone(&play.replicas[0].link);
    draining.step_back();
    assert!(play.board.needs(&draining));
    let mut answered = play.ask();
    let (index, number) = play.who_was_asked();
    play.decide(index, number, yes());
    assert!(matches!(answered.try_recv(), Ok(Ok(Decision::Allow(_)))));

    let other = Rc::new(Link::new(Transport::local(Routes::default())));
    play.board.join(Rc::clone(&other));
    assert!(play.board.needs(&draining), "the other has no stream yet");
    let (outgoing, stream) = mpsc::channel(100);
    play.board.opened(&other, outgoing, play.now);
    play.replicas.push(Replica {
        link: other,
        stream,
    });
    assert!(!play.board.needs(&draining));
    for _ in 0..20 {
        play.ask();
    }
    assert!(play.asked().iter().all(|(index, _)| *index == 1));

    // What is no replica any more is never asked.
    play.lose(1);
    draining.leave();
    assert!(!play.board.needs(&draining));
    play.asked();
    play.ask();
    assert_eq!(play.asked(), []);
}

#[test]
fn a_replica_that_cannot_decide_is_made_up_for() {
    let mut play = Play::with(2);
    let mut open = play.ask();
    let (first, number) = play.who_was_asked();
    play.refuse(first, number, cannot());
    let (second, _) = play.who_was_asked();
    assert_eq!(second, 1 - first);
    play.decide(second, number, yes());
    assert!(matches!(open.try_recv(), Ok(Ok(_))));

    let mut open = play.ask();
    let (first, number) = play.who_was_asked();
    let unknown = AuthorizeError::UnknownConfiguration {
        route: RouteId("".into()),
    };
    play.refuse(first, number, cannot());
    play.refuse(1 - first, number, unknown);
    assert!(matches!(
        open.try_recv(),
        Ok(Err(AuthorizeError::UnknownConfiguration { .. }))
    ));
    assert!(play.board.is_empty());
}

#[test]
fn a_slow_answer_of_a_live_replica_is_waited_for() {
    let mut play = Play::with(1);
    let mut open = play.ask();
    for _ in 0..33 {
        play.pass(300);
        assert!(open.try_recv().is_err());
        // Its connection was tried, and it answers.
        let link = Rc::clone(&play.replicas[0].link);
        play.board.heard(&link, play.now);
    }
    play.pass(100);
    assert!(is_unreachable(&mut open), "grpc_client_timeout");
}

#[test]
fn what_nobody_waits_for_is_forgotten() {
    let mut play = Play::with(1);
    let (number, _answered) = play
        .board
        .ask(question(), Duration::from_secs(10), play.now)
        .expect("a place");
    play.board.forget(number);
    assert!(play.board.is_empty());
    assert_eq!(play.replicas[0].link.open(), 0);
    play.pass(10_000);
    assert_eq!(play.replicas[0].link.standing(), Standing::Well);
}
