//! The history of a random run, and the check whether it is valid.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::fleet::{Answer, News, Outcome};

/// How long it can take until every node knows of a change, and hears again after a fault.
const KNOWN_AFTER: u64 = 1_000_000;
/// How long it can take until a factory's value that was stored too late is taken back.
const TAKEN_BACK_AFTER: u64 = 250_000;

/// A call that has ended. Times are microseconds since the epoch.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) node: usize,
    pub(crate) request: String,
    pub(crate) answer: Answer,
}

/// While it is broken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trouble {
    pub(crate) name: &'static str,
    /// L2 was whole.
    pub(crate) bus_only: bool,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

/// Where a value comes from: it is not older than the end of a set or the beginning of a factory.
struct Origin {
    key: String,
    node: usize,
    by_factory: bool,
    begun: u64,
    done: u64,
}

/// What makes values of a key, or of all keys, old.
struct Change<'a> {
    verb: &'a str,
    key: Option<&'a str>,
    node: usize,
    begun: u64,
    ended: u64,
}

pub(crate) struct History {
    pub(crate) steps: Vec<Step>,
    pub(crate) troubles: Vec<Trouble>,
    /// By node.
    pub(crate) news: Vec<Vec<News>>,
}

impl History {
    /// Whether something was broken in that time, and only the bus.
    fn troubled(&self, from: u64, to: u64) -> Option<bool> {
        let within = |trouble: &&Trouble| trouble.begun <= to && trouble.ended >= from;
        let mut within = self.troubles.iter().filter(within).peekable();
        within.peek()?;
        Some(within.all(|trouble| trouble.bus_only))
    }

    /// Whether nothing was wrong with the bus of any node in the last while.
    fn bus_was_whole(&self, at: u64) -> bool {
        let since = at - KNOWN_AFTER;
        let is_linked = |news: &Vec<News>| {
            let mut linked = true;
            for one in news.iter().filter(|one| one.at <= at) {
                match &*one.text {
                    "lost" => linked = false,
                    "restored" => linked = one.at <= since,
                    _ => {}
                }
            }
            linked
        };
        self.troubled(since, at).is_none() && self.news.iter().all(is_linked)
    }

    fn origins(&self) -> HashMap<u32, Origin> {
        let mut origins = HashMap::new();
        for Step { node, request, answer } in &self.steps {
            let words: Vec<_> = request.split(' ').collect();
            let ["set" | "get_or_set", key, value, ..] = words[..] else { continue };
            let by_factory = words[0] == "get_or_set";
            let ran = format!("factory {value}");
            let began = self.news[*node].iter().find(|news| news.text == ran).map(|news| news.at);
            let (begun, done) = match (by_factory, began) {
                (false, _) => (answer.begun, answer.ended),
                (true, Some(began)) => (began, began),
                // It was not asked for.
                (true, None) => continue,
            };
            let origin = Origin { key: key.to_owned(), node: *node, by_factory, begun, done };
            origins.insert(value.parse().unwrap(), origin);
        }
        origins
    }

    fn changes(&self) -> Vec<Change<'_>> {
        let change = |step: &'_ Step| {
            let mut words = step.request.split(' ');
            let verb = words.next()?;
            matches!(verb, "set" | "delete" | "expire" | "delete_by_tag" | "clear").then_some(())?;
            Some((verb.len(), verb == "delete_by_tag" || verb == "clear"))
        };
        self.steps
            .iter()
            .filter_map(|step| {
                let (length, of_all) = change(step)?;
                Some(Change {
                    verb: &step.request[..length],
                    key: step.request.split(' ').nth(1).filter(|_| !of_all),
                    node: step.node,
                    begun: step.answer.begun,
                    ended: step.answer.ended,
                })
            })
            .collect()
    }

    /// How many reads were fresh, and what is wrong with the first that should not have been.
    pub(crate) fn judge(&self) -> (usize, Option<String>) {
        let (origins, changes) = (self.origins(), self.changes());
        let mut judged = 0;
        for step in &self.steps {
            let (Outcome::Fresh(value) | Outcome::Made(value)) = step.answer.outcome else {
                continue;
            };
            judged += 1;
            let key = step.request.split(' ').nth(1).unwrap();
            let Some(origin) = origins.get(&value).filter(|origin| origin.key == key) else {
                return (judged, Some(format!("{step:?}: nobody has written that there")));
            };
            let is_wrong = |change: &&Change<'_>| {
                change.key.is_none_or(|changed| changed == key)
                    && change.begun > origin.done
                    && change.ended < step.answer.begun
                    && self.is_known(step, origin, change)
            };
            if let Some(change) = changes.iter().find(is_wrong) {
                let Change { verb, node, begun, .. } = change;
                let why = format!("{step:?} is older than the {verb} of node {node} at {begun}");
                return (judged, Some(why + &self.around(key, origin.begun, step.answer.ended)));
            }
        }
        (judged, None)
    }

    /// Whether the node can know that the change came after the value.
    fn is_known(&self, step: &Step, origin: &Origin, change: &Change<'_>) -> bool {
        let read = step.answer.begun;
        // A clear takes the markers of tags along, and says so itself when it has ended.
        let is_clear = |step: &Step| step.request == "clear" && step.answer.ended >= change.begun;
        if change.verb == "delete_by_tag" && self.steps.iter().any(is_clear) {
            return false;
        }
        let late = read - change.ended;
        let is_own = change.node == step.node;
        if is_own && origin.node == step.node {
            return !origin.by_factory || late >= TAKEN_BACK_AFTER;
        }
        match self.troubled(origin.begun.min(change.begun), read) {
            // What is stored is stored.
            None if is_own && !origin.by_factory => true,
            None => late >= KNOWN_AFTER,
            // A factory's value is taken back for a message, which may never have come.
            Some(true) => !origin.by_factory && late >= KNOWN_AFTER && self.bus_was_whole(read),
            // What was queued is repeated later.
            Some(false) => false,
        }
    }

    /// What happened to a key in that time.
    fn around(&self, key: &str, from: u64, to: u64) -> String {
        let mut lines = Vec::new();
        let from = from.saturating_sub(100_000);
        for Step { node, request, answer } in &self.steps {
            let is_of_it = request.split(' ').nth(1).is_none_or(|word| word == key || word == "#t");
            if is_of_it && answer.ended >= from && answer.begun <= to {
                let took = answer.ended - answer.begun;
                lines.push((
                    answer.begun,
                    format!("node {node}: {request} = {:?} in {took}", answer.outcome),
                ));
            }
        }
        for (node, news) in self.news.iter().enumerate() {
            for one in news.iter().filter(|one| (from..=to).contains(&one.at)) {
                lines.push((one.at, format!("node {node}: {}", one.text)));
            }
        }
        for Trouble { name, begun, ended, .. } in &self.troubles {
            if *ended >= from && *begun <= to {
                lines.push((*begun, format!("---- {name} until {ended}")));
            }
        }
        lines.sort();
        let mut text = String::new();
        for (at, line) in lines {
            let _ = write!(text, "\n{at} {line}");
        }
        text
    }
}
