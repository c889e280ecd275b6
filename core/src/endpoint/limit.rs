//! How many requests a server is sent at once: more while it keeps up, fewer when it does not.
//!
//! Additive increase and multiplicative decrease (Chiu and Jain, 1989, "Analysis of the increase and
//! decrease algorithms for congestion avoidance"), with TCP's slow start (RFC 5681, section 3.1) and
//! at most one decrease for the requests that were on their way together.

/// Requests at once in the beginning.
const FIRST: f64 = 4.0;
/// Answers that are looked at together.
const WINDOW: usize = 16;
/// Tokens that take as long as what an answer of none takes.
const FIXED_TOKENS: f64 = 16.0;
/// How much slower than its best a server may become.
const SLOW: f64 = 3.0;
/// The best is forgotten at this rate, as answers become longer and servers change.
const DRIFT: f64 = 1.02;

/// Requests that may be on their way at once.
#[derive(Debug)]
pub(super) struct Limit {
    most: f64,
    now: f64,
    /// Until the first decrease, every answer makes room for one more.
    is_starting: bool,
    decreases: u64,
    /// Seconds per token of the newest answers.
    window: Vec<f64>,
    best: Option<Best>,
}

/// The fastest window.
#[derive(Debug, Clone, Copy)]
struct Best {
    seconds: f64,
    at_once: f64,
}

/// What a request was sent under.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket(u64);

impl Limit {
    pub fn new(most: usize) -> Self {
        let most = most as f64;
        let now = FIRST.min(most);
        Self { most, now, is_starting: true, decreases: 0, window: Vec::new(), best: None }
    }

    /// Requests that may be on their way.
    pub fn allowed(&self) -> usize {
        self.now as usize
    }

    pub fn ticket(&self) -> Ticket {
        Ticket(self.decreases)
    }

    /// An answer of so many tokens came after so many seconds.
    pub fn answered(&mut self, ticket: Ticket, seconds: f64, tokens: u64) {
        let more = if self.is_starting { 1.0 } else { 1.0 / self.now };
        self.now = (self.now + more).min(self.most);
        // What was sent before a decrease tells nothing of what it changed.
        if ticket.0 != self.decreases {
            return;
        }
        self.window.push(seconds / (tokens as f64 + FIXED_TOKENS));
        if self.window.len() == WINDOW {
            self.window.sort_unstable_by(f64::total_cmp);
            let median = self.window[WINDOW / 2];
            self.window.clear();
            self.compare(ticket, median);
        }
    }

    /// A server that computes several requests together may become slower in proportion to them:
    /// only beyond that it is overloaded.
    fn compare(&mut self, ticket: Ticket, seconds: f64) {
        let at_once = self.now;
        let best = self.best.map(|best| Best { seconds: best.seconds * DRIFT, ..best });
        match best {
            Some(best) if seconds > best.seconds => {
                self.best = Some(best);
                if seconds > SLOW * best.seconds * (at_once / best.at_once).max(1.0) {
                    self.overloaded(ticket);
                }
            }
            _ => self.best = Some(Best { seconds, at_once }),
        }
    }

    /// The server refused a request for lack of room, or let it wait too long; whether that is news.
    pub fn overloaded(&mut self, ticket: Ticket) -> bool {
        let is_news = ticket.0 == self.decreases;
        if is_news {
            self.now = (self.now / 2.0).max(1.0);
            self.decreases += 1;
            self.is_starting = false;
            self.window.clear();
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit after so many answers, each after so many seconds.
    fn answer(limit: &mut Limit, count: usize, seconds: f64) -> usize {
        (0..count).for_each(|_| limit.answered(limit.ticket(), seconds, 100));
        limit.allowed()
    }

    #[test]
    fn it_rises_to_the_most_and_halves_once_for_what_was_on_its_way_together() {
        let mut limit = Limit::new(32);
        assert_eq!(limit.allowed(), 4);
        assert_eq!(answer(&mut limit, 4, 1.0), 8);
        assert_eq!(answer(&mut limit, 100, 1.0), 32);
        let together = limit.ticket();
        let news = (0..32).filter(|_| limit.overloaded(together)).count();
        assert_eq!(news, 1);
        assert_eq!(limit.allowed(), 16);
        // From now on one more for as many answers as are on their way.
        assert_eq!(answer(&mut limit, 17, 1.0), 17);
        for _ in 0..10 {
            limit.overloaded(limit.ticket());
        }
        assert_eq!(limit.allowed(), 1);
        assert_eq!(answer(&mut limit, 1, 1.0), 2);
        assert_eq!(Limit::new(1).allowed(), 1);
    }

    #[test]
    fn a_server_that_becomes_much_slower_gets_fewer() {
        let mut limit = Limit::new(8);
        assert_eq!(answer(&mut limit, 4 * WINDOW, 0.1), 8);
        // Less than three times as slow, or slower because there are more at once.
        assert_eq!(answer(&mut limit, 4 * WINDOW, 0.25), 8);
        answer(&mut limit, WINDOW, 1.0);
        assert_eq!(limit.allowed(), 4);
        let mut limit = Limit::new(64);
        answer(&mut limit, WINDOW, 0.1);
        assert_eq!(answer(&mut limit, 2 * WINDOW, 0.5), 52);
    }

    #[test]
    fn a_few_slow_answers_change_nothing() {
        let mut limit = Limit::new(8);
        answer(&mut limit, 4 * WINDOW, 0.1);
        for _ in 0..20 {
            answer(&mut limit, 6, 0.1);
            answer(&mut limit, 1, 50.0);
        }
        assert_eq!(limit.allowed(), 8);
    }
}
