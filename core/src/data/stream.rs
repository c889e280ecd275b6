//! Rows ahead of training: read, parsed and encoded by worker threads, handed over in order.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::dataset::Dataset;
use super::mixture::{Cursor, Order, RowRef};
use super::record::{Origin, Record};
use crate::{Error, Result};

/// Where the rows of a mixture are read.
pub trait RowSource: Send + Sync {
    /// Where a row comes from.
    fn origin(&self, row: RowRef) -> Origin;

    /// A row, parsed.
    ///
    /// # Errors
    /// With the row's place, if it cannot be read.
    fn record(&self, row: RowRef) -> Result<Record>;
}

impl RowSource for Vec<Dataset> {
    fn origin(&self, row: RowRef) -> Origin {
        self[row.dataset as usize].origin(row.row as usize)
    }

    fn record(&self, row: RowRef) -> Result<Record> {
        self[row.dataset as usize].record(row.row as usize)
    }
}

/// How far and by how many threads a stream reads ahead.
#[derive(Debug, Clone, Copy)]
pub struct StreamOptions {
    /// Worker threads; at least one.
    pub threads: usize,
    /// Rows that may be ready or under way before the first of them is taken.
    pub ahead: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads: cores.min(8), ahead: 256 }
    }
}

/// One row of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Streamed<T> {
    /// Where the row comes from.
    pub origin: Origin,
    /// The row's own cursor.
    pub at: Cursor,
    /// Where to go on once this row has been used: what a checkpoint keeps.
    pub next: Cursor,
    /// What the encoder made of it.
    pub value: T,
}

/// The rows of an [`Order`], encoded in the background.
///
/// Items come in exactly the order's order, whatever the number of threads; a row that cannot be
/// read or encoded is an error at its place, and the stream goes on after it. Dropping the stream
/// stops the threads; each finishes at most the row at hand.
pub struct RowStream<T> {
    shared: Arc<Shared<T>>,
    workers: Vec<JoinHandle<()>>,
}

impl<T> std::fmt::Debug for RowStream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RowStream").field("threads", &self.workers.len()).finish_non_exhaustive()
    }
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// Signalled when a row is ready.
    ready: Condvar,
    /// Signalled when there is room for another row, or the stream is dropped.
    room: Condvar,
    ahead: u64,
}

struct State<T> {
    order: Order,
    /// Rows handed to workers.
    issued: u64,
    /// Rows handed to the reader.
    taken: u64,
    /// Encoded rows by their number, waiting for those before them.
    done: BTreeMap<u64, Result<Streamed<T>>>,
    exhausted: bool,
    stopped: bool,
}

impl<T: Send + 'static> RowStream<T> {
    /// Starts reading. `encode` is called on worker threads, for several rows at once.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start<S, E>(
        source: Arc<S>,
        order: Order,
        encode: E,
        options: StreamOptions,
    ) -> Result<Self>
    where
        S: RowSource + 'static,
        E: Fn(&Origin, Record) -> Result<T> + Send + Sync + 'static,
    {
        let state = State {
            order,
            issued: 0,
            taken: 0,
            done: BTreeMap::new(),
            exhausted: false,
            stopped: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            ready: Condvar::new(),
            room: Condvar::new(),
            ahead: options.ahead.max(1) as u64,
        });
        let encode = Arc::new(encode);
        // Dropped on an error below, it stops the workers that have started.
        let mut stream = Self { shared, workers: Vec::new() };
        for index in 0..options.threads.max(1) {
            let (shared, source) = (Arc::clone(&stream.shared), Arc::clone(&source));
            let encode = Arc::clone(&encode);
            let worker = std::thread::Builder::new()
                .name(format!("rows-{index}"))
                .spawn(move || work(&shared, &*source, &*encode))
                .map_err(|error| {
                    Error::new(crate::ErrorKind::Io, "cannot start a thread that reads rows")
                        .because(error)
                })?;
            stream.workers.push(worker);
        }
        Ok(stream)
    }
}

impl<T> Shared<T> {
    /// A worker never panics while it holds the lock, so a poisoned one is still sound.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker does: takes the next row of the order, encodes it, puts it in its place.
fn work<T, S, E>(shared: &Shared<T>, source: &S, encode: &E)
where
    S: RowSource,
    E: Fn(&Origin, Record) -> Result<T>,
{
    loop {
        let mut state = shared.lock();
        while !state.stopped && state.issued - state.taken >= shared.ahead {
            state = shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.stopped || state.exhausted {
            return;
        }
        let Some((at, row)) = state.order.next() else {
            state.exhausted = true;
            // The reader may wait for a row that will not come, other workers for room.
            shared.ready.notify_all();
            shared.room.notify_all();
            return;
        };
        let (number, next) = (state.issued, state.order.cursor());
        state.issued += 1;
        drop(state);

        let item = catch_unwind(AssertUnwindSafe(|| {
            let origin = source.origin(row);
            let value = encode(&origin, source.record(row)?)?;
            Ok(Streamed { origin, at, next, value })
        }))
        .unwrap_or_else(|panic| {
            let what = format!("a defect of halter at row {}: {}", row.row + 1, said(&*panic));
            Err(Error::data(what).hint("please report it with the row"))
        });

        let mut state = shared.lock();
        state.done.insert(number, item);
        if number == state.taken {
            shared.ready.notify_all();
        }
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without words")
}

impl<T> Iterator for RowStream<T> {
    type Item = Result<Streamed<T>>;

    /// The next row, waiting for it if need be; `None` when the order is at its end.
    fn next(&mut self) -> Option<Self::Item> {
        let mut state = self.shared.lock();
        loop {
            let number = state.taken;
            if let Some(item) = state.done.remove(&number) {
                state.taken += 1;
                self.shared.room.notify_one();
                return Some(item);
            }
            if state.exhausted && state.taken == state.issued {
                return None;
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for RowStream<T> {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            // A worker's panics were made errors; there is nothing to learn from the join.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::mixture::Mixture;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    /// Rows that say their own number, after a delay that differs from row to row.
    struct Numbers {
        delay: bool,
        read: AtomicUsize,
    }

    impl Numbers {
        fn new(delay: bool) -> Arc<Self> {
            Arc::new(Self { delay, read: AtomicUsize::new(0) })
        }
    }

    impl RowSource for Numbers {
        fn origin(&self, row: RowRef) -> Origin {
            Origin { path: Arc::new(PathBuf::from("numbers")), line: row.row as usize + 1 }
        }

        fn record(&self, row: RowRef) -> Result<Record> {
            self.read.fetch_add(1, Ordering::SeqCst);
            if self.delay {
                std::thread::sleep(Duration::from_micros(u64::from(row.row * 7919 % 13) * 100));
            }
            Ok(Record::Text { text: row.row.to_string() })
        }
    }

    fn text(_: &Origin, record: Record) -> Result<String> {
        match record {
            Record::Text { text } => Ok(text),
            other => Err(Error::data(format!("{other:?}"))),
        }
    }

    fn order(rows: usize, from: Cursor, epochs: Option<u64>) -> Order {
        Mixture::new(&[(rows, 1.0)], 5, true).unwrap().rows_from(from, epochs).unwrap()
    }

    #[test]
    fn rows_come_in_order_whatever_the_number_of_threads() {
        let expected: Vec<_> = order(97, Cursor::default(), Some(2))
            .map(|(at, row)| (at, row.row.to_string()))
            .collect();
        for threads in [1, 2, 7] {
            let options = StreamOptions { threads, ahead: 5 };
            let order = order(97, Cursor::default(), Some(2));
            let stream = RowStream::start(Numbers::new(true), order, text, options).unwrap();
            let got: Vec<_> =
                stream.map(Result::unwrap).map(|item| (item.at, item.value)).collect();
            assert_eq!(got, expected, "{threads} threads");
        }
    }

    #[test]
    fn a_stream_started_at_a_rows_next_cursor_goes_on_after_it() {
        let options = StreamOptions { threads: 3, ahead: 4 };
        let run = |from| {
            let stream =
                RowStream::start(Numbers::new(false), order(9, from, Some(2)), text, options);
            stream.unwrap().map(Result::unwrap).collect::<Vec<_>>()
        };
        let whole = run(Cursor::default());
        assert_eq!(whole.len(), 18);
        for (index, item) in whole.iter().enumerate() {
            assert_eq!(run(item.next), whole[index + 1..], "after row {index}");
        }
    }

    #[test]
    fn no_more_rows_are_read_ahead_than_asked_for() {
        let source = Numbers::new(false);
        let options = StreamOptions { threads: 4, ahead: 6 };
        let order = order(1000, Cursor::default(), None);
        let mut stream = RowStream::start(Arc::clone(&source), order, text, options).unwrap();
        for taken in 1..20 {
            stream.next().unwrap().unwrap();
            std::thread::sleep(Duration::from_millis(2));
            let read = source.read.load(Ordering::SeqCst);
            assert!(read <= taken + 6, "{read} rows read when {taken} were taken");
        }
    }

    #[test]
    fn errors_and_panics_come_at_their_place_and_the_stream_goes_on() {
        let encode = |origin: &Origin, _: Record| match origin.line {
            3 => Err(Error::data("wrong").at(&*origin.path, origin.line)),
            5 => panic!("no such token"),
            line => Ok(line),
        };
        let mixture = Mixture::new(&[(6, 1.0)], 5, false).unwrap();
        let order = mixture.rows_from(Cursor::default(), Some(1)).unwrap();
        let options = StreamOptions { threads: 3, ahead: 8 };
        let stream = RowStream::start(Numbers::new(true), order, encode, options).unwrap();
        let shown: Vec<_> = stream
            .map(|item| item.map_or_else(|e| e.to_string(), |item| item.value.to_string()))
            .collect();
        let defect = "a defect of halter at row 5: no such token";
        assert_eq!(shown, ["1", "2", "numbers:3: wrong", "4", defect, "6"]);
    }

    #[test]
    fn dropping_a_stream_stops_its_threads_at_once() {
        let source = Numbers::new(true);
        for threads in [1, 8] {
            let options = StreamOptions { threads, ahead: 64 };
            let order = order(100_000, Cursor::default(), None);
            let mut stream = RowStream::start(Arc::clone(&source), order, text, options).unwrap();
            stream.next().unwrap().unwrap();
            let before = Instant::now();
            drop(stream);
            assert!(before.elapsed() < Duration::from_secs(2));
            assert_eq!(Arc::strong_count(&source), 1, "a thread still holds the source");
        }
    }

    #[test]
    fn an_order_at_its_end_gives_an_empty_stream() {
        let order = order(4, Cursor { epoch: 1, position: 0 }, Some(1));
        let stream =
            RowStream::start(Numbers::new(false), order, text, StreamOptions::default()).unwrap();
        assert_eq!(stream.count(), 0);
    }
}
