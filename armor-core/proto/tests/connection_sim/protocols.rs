//! A client and a server that speak HTTP or RESP. Every request has an effect that outlives the server's processes: a counter goes up
//! and its value is the answer, so a request that is executed twice shows in every answer after it.

use std::collections::VecDeque;

use rand::Rng;
use rand::rngs::StdRng;

/// Databases, each with a counter.
pub const DATABASES: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speech {
    Http,
    Resp,
}

/// What outlives processes.
#[derive(Clone, Debug, Default)]
pub struct Store {
    counters: [u64; DATABASES],
    /// Requests in the order of their execution, with the values that they were given.
    pub executed: Vec<(usize, u64)>,
    /// How often a login was accepted.
    pub logins: usize,
}

impl Store {
    fn count(&mut self, request: usize, database: usize) -> u64 {
        self.counters[database] += 1;
        self.executed.push((request, self.counters[database]));
        self.counters[database]
    }

    pub fn executions(&self, request: usize) -> usize {
        self.executed.iter().filter(|(id, _)| *id == request).count()
    }
}

/// What one connection of a server process remembers.
#[derive(Default)]
pub struct Session {
    /// Which process it is: part of every HTTP answer, as a date or a session number would be.
    pub process: u8,
    authenticated: bool,
    database: usize,
    queued: Option<Vec<usize>>,
}

impl Session {
    pub fn of(process: u8) -> Self {
        Session { process, ..Session::default() }
    }

    /// The answer to the first request in `heard`, and the request's length; `None` while it is not complete.
    pub fn serve(&mut self, speech: Speech, heard: &[u8], store: &mut Store) -> Option<(usize, Vec<u8>)> {
        match speech {
            Speech::Http => self.serve_http(heard, store),
            Speech::Resp => self.serve_resp(heard, store),
        }
    }

    fn serve_http(&mut self, heard: &[u8], store: &mut Store) -> Option<(usize, Vec<u8>)> {
        let head = heard.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
        let text = std::str::from_utf8(&heard[..head]).expect("a head in ASCII");
        let mut words = text.split_ascii_whitespace();
        let (method, path) = (words.next().expect("a method"), words.next().expect("a path"));
        assert!(["GET", "POST", "HEAD"].contains(&method), "a request is cut: {text:?}");
        let body: usize = text.split("Content-Length: ").nth(1).map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
        if heard.len() < head + body {
            return None;
        }
        let (id, length) = path[1..].split_once('/').expect("two numbers");
        let (id, length): (usize, usize) = (id.parse().unwrap(), length.parse().unwrap());
        let count = store.count(id, 0);
        let answer = format!("HTTP/1.1 200 OK\r\nX-Process: {:03}\r\nX-Count: {count}\r\n", self.process);
        let filler: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(31) ^ count as u8).collect();
        let answer = match id % 3 {
            _ if method == "HEAD" => format!("{answer}Content-Length: {length}\r\n\r\n").into_bytes(),
            0 => [format!("{answer}Content-Length: {length}\r\n\r\n").as_bytes(), &filler].concat(),
            1 => {
                let chunks = filler.chunks(700).flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
                format!("{answer}Transfer-Encoding: chunked\r\n\r\n").bytes().chain(chunks).chain(*b"0\r\n\r\n").collect()
            }
            _ => [format!("HTTP/1.1 103 Early Hints\r\n\r\n{answer}Content-Length: {length}\r\n\r\n").as_bytes(), &filler].concat(),
        };
        Some((head + body, answer))
    }

    fn serve_resp(&mut self, heard: &[u8], store: &mut Store) -> Option<(usize, Vec<u8>)> {
        let (words, length) = words(heard)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = match words[..] {
            ["AUTH", _] => {
                self.authenticated = true;
                store.logins += 1;
                "+OK\r\n".to_owned()
            }
            _ if !self.authenticated => "-NOAUTH Authentication required.\r\n".to_owned(),
            ["SELECT", database] => {
                self.database = database.parse().unwrap();
                "+OK\r\n".to_owned()
            }
            ["MULTI"] => {
                self.queued = Some(Vec::new());
                "+OK\r\n".to_owned()
            }
            ["EXEC"] => {
                let queued = self.queued.take().expect("EXEC after MULTI");
                let counts = queued.iter().map(|id| format!(":{}\r\n", store.count(*id, self.database)));
                format!("*{}\r\n{}", queued.len(), counts.collect::<String>())
            }
            ["INCR", id] => match &mut self.queued {
                Some(queued) => {
                    queued.push(id.parse().unwrap());
                    "+QUEUED\r\n".to_owned()
                }
                None => format!(":{}\r\n", store.count(id.parse().unwrap(), self.database)),
            },
            ref other => panic!("a command is cut: {other:?}"),
        };
        Some((length, answer.into_bytes()))
    }
}

/// The words of the first command in `heard`, and its length.
fn words(heard: &[u8]) -> Option<(Vec<String>, usize)> {
    let mut at = 0;
    let mut line = |mark: u8| -> Option<usize> {
        let end = at + heard[at..].windows(2).position(|end| end == b"\r\n")?;
        assert_eq!(heard[at], mark, "a command is cut");
        let number = std::str::from_utf8(&heard[at + 1..end]).unwrap().parse().unwrap();
        at = end + 2;
        Some(number)
    };
    let count = line(b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let end = at + heard[at..].windows(2).position(|end| end == b"\r\n")?;
        assert_eq!(heard[at], b'$', "a command is cut");
        let length: usize = std::str::from_utf8(&heard[at + 1..end]).unwrap().parse().unwrap();
        at = end + 2 + length + 2;
        words.push(String::from_utf8(heard.get(end + 2..at - 2)?.to_vec()).unwrap());
        heard.get(at - 1)?;
    }
    Some((words, at))
}

struct Request {
    text: Vec<u8>,
    /// Requests of a transaction are complete together.
    unit: usize,
    head_only: bool,
}

/// What the client says: batches of requests. It waits for the answers to one, rests, and says the next.
pub struct Dialogue {
    speech: Speech,
    requests: Vec<Request>,
    /// Number of requests in each batch that was not said yet.
    batches: VecDeque<usize>,
    said: usize,
    answered: usize,
    /// The values in each answer.
    values: Vec<Vec<u64>>,
    /// Bytes of what was heard that belong to complete answers.
    taken: usize,
}

impl Dialogue {
    pub fn new(speech: Speech, most: usize, rng: &mut StdRng) -> Self {
        let mut dialogue =
            Dialogue { speech, requests: Vec::new(), batches: VecDeque::new(), said: 0, answered: 0, values: Vec::new(), taken: 0 };
        if speech == Speech::Resp {
            dialogue.batch(vec![vec![command(&["AUTH", "secret"])]]);
        }
        for _ in 0..rng.random_range(1..7) {
            let depth = [1, 1, 2, 5, 30][rng.random_range(0..5)];
            let mut units: Vec<_> = (0..depth).map(|_| dialogue.unit(most / depth, rng)).collect();
            // More settings under way at once than can be kept would give the connection up.
            let mut settings = 0;
            units.retain(|unit| {
                settings += usize::from(unit[0].starts_with(b"*2\r\n$6\r\nSELECT"));
                !unit[0].starts_with(b"*2\r\n$6\r\nSELECT") || settings <= 6
            });
            dialogue.batch(units);
        }
        dialogue
    }

    fn batch(&mut self, units: Vec<Vec<Vec<u8>>>) {
        self.batches.push_back(units.iter().map(Vec::len).sum());
        for texts in units {
            let unit = self.requests.len();
            for text in texts {
                let head_only = text.starts_with(b"HEAD");
                self.requests.push(Request { text, unit, head_only });
            }
        }
        // Texts name requests by their number, which is known only now.
        for (number, request) in self.requests.iter_mut().enumerate() {
            if let Some(at) = request.text.windows(4).position(|place| place == b"####") {
                request.text.splice(at..at + 4, format!("{number:04}").into_bytes());
            }
        }
    }

    fn unit(&self, most: usize, rng: &mut StdRng) -> Vec<Vec<u8>> {
        let incr = || command(&["INCR", "####"]);
        if self.speech == Speech::Http {
            let length = rng.random_range(0..most.max(2));
            let text = match rng.random_range(0..4) {
                0 => format!("HEAD /####/{length} HTTP/1.1\r\nHost: model\r\n\r\n"),
                1 => {
                    let body = "b".repeat(rng.random_range(1..most.max(2)));
                    format!("POST /####/{length} HTTP/1.1\r\nHost: model\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                }
                _ => format!("GET /####/{length} HTTP/1.1\r\nHost: model\r\n\r\n"),
            };
            return vec![text.into_bytes()];
        }
        match rng.random_range(0..8) {
            0 => vec![command(&["SELECT", &rng.random_range(0..DATABASES).to_string()])],
            1 | 2 => {
                let queued = (0..rng.random_range(0..4)).map(|_| incr());
                std::iter::once(command(&["MULTI"])).chain(queued).chain([command(&["EXEC"])]).collect()
            }
            _ => vec![incr()],
        }
    }

    /// What the client says in all.
    pub fn text(&self) -> Vec<u8> {
        self.requests.iter().flat_map(|request| request.text.clone()).collect()
    }

    /// The next batch, once all answers have come; `None` when there is none left.
    pub fn next_batch(&mut self) -> Option<Vec<u8>> {
        let length = self.batches.pop_front()?;
        let from = self.said;
        self.said += length;
        Some(self.requests[from..self.said].iter().flat_map(|request| request.text.clone()).collect())
    }

    pub fn is_over(&self) -> bool {
        self.batches.is_empty() && self.waits_for_nothing()
    }

    pub fn waits_for_nothing(&self) -> bool {
        self.answered == self.said
    }

    /// Looks for complete answers.
    pub fn hear(&mut self, heard: &[u8]) {
        while self.answered < self.said {
            let rest = &heard[self.taken..];
            let length = match self.speech {
                Speech::Http => http_answer(rest, self.requests[self.answered].head_only),
                Speech::Resp => resp_answer(rest),
            };
            let Some(length) = length else { return };
            self.values.push(values(&rest[..length]));
            self.taken += length;
            self.answered += 1;
        }
    }

    /// Requests that were said, of which or of whose transaction an answer is missing.
    pub fn in_progress(&self) -> Vec<usize> {
        let open = self.requests.get(self.answered).map_or(usize::MAX, |request| request.unit);
        (0..self.said).filter(|number| self.requests[*number].unit >= open).collect()
    }

    /// Requests whose answers are complete.
    pub fn completed(&self) -> usize {
        self.requests.get(self.answered).map_or(self.answered, |request| request.unit)
    }

    /// Requests and the values that the client was given for them.
    pub fn answers(&self) -> Vec<(usize, u64)> {
        let mut queued = Vec::new();
        let mut all = Vec::new();
        for (number, values) in self.values.iter().enumerate() {
            match values[..] {
                // The last one of a transaction has the values of all.
                _ if self.requests[number].text.windows(4).any(|word| word == b"EXEC") => {
                    assert_eq!(queued.len(), values.len());
                    all.extend(queued.drain(..).zip(values.iter().copied()));
                }
                [] if self.counts(number) => queued.push(number),
                [value] => all.push((number, value)),
                _ => {}
            }
        }
        all
    }

    /// Requests that count: those with an effect.
    pub fn counts(&self, number: usize) -> bool {
        self.speech == Speech::Http || self.requests[number].text.windows(4).any(|word| word == b"INCR")
    }
}

fn command(words: &[&str]) -> Vec<u8> {
    let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len())).collect::<Vec<_>>();
    format!("*{}\r\n{}", words.len(), words.concat()).into_bytes()
}

fn line(text: &[u8]) -> Option<usize> {
    text.windows(2).position(|end| end == b"\r\n").map(|end| end + 2)
}

fn resp_answer(text: &[u8]) -> Option<usize> {
    let mut length = line(text)?;
    if text[0] == b'*' {
        let count: usize = std::str::from_utf8(&text[1..length - 2]).unwrap().parse().unwrap();
        for _ in 0..count {
            length += resp_answer(&text[length..])?;
        }
    }
    Some(length)
}

/// The counts in an answer.
fn values(answer: &[u8]) -> Vec<u64> {
    let lines = answer.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let numbers = lines.filter_map(|line| line.strip_prefix("X-Count: ").or(line.strip_prefix(':')));
    numbers.filter_map(|number| number.trim_end().parse().ok()).collect()
}

fn http_answer(text: &[u8], head_only: bool) -> Option<usize> {
    let head = text.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let fields = std::str::from_utf8(&text[..head]).unwrap();
    if fields.starts_with("HTTP/1.1 103 ") {
        return Some(head + http_answer(&text[head..], head_only)?);
    }
    if head_only {
        return Some(head);
    }
    if let Some(rest) = fields.split("Content-Length: ").nth(1) {
        let length: usize = rest.lines().next().unwrap().parse().unwrap();
        return (text.len() >= head + length).then_some(head + length);
    }
    let mut at = head;
    loop {
        let size_line = line(&text[at..])?;
        let size = usize::from_str_radix(std::str::from_utf8(&text[at..at + size_line - 2]).unwrap(), 16).unwrap();
        at += size_line + size + 2;
        if size == 0 {
            return (text.len() >= at).then_some(at);
        }
        text.get(at - 1)?;
    }
}

/// The stream of a server that never crashes.
pub fn uncrashed(speech: Speech, said: &[u8]) -> Vec<u8> {
    let (mut session, mut store, mut at, mut stream) = (Session::default(), Store::default(), 0, Vec::new());
    while at < said.len() {
        let served = session.serve(speech, &said[at..], &mut store);
        let (length, answer) = served.expect("complete requests");
        at += length;
        stream.extend(answer);
    }
    stream
}

/// The same stream without the numbers of processes.
pub fn anonymous(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    let name = b"X-Process: ";
    for at in 0..stream.len().saturating_sub(name.len() + 3) {
        if stream[at..].starts_with(name) {
            stream[at + name.len()..at + name.len() + 3].copy_from_slice(b"000");
        }
    }
    stream
}
