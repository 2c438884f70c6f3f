//! The topology of a cluster.

use std::ops::RangeInclusive;

use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr, RedisResult, Value};

/// The addresses of the nodes that own slots or replicate them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Nodes {
    pub(crate) primaries: Vec<(String, u16)>,
    pub(crate) all: Vec<(String, u16)>,
}

/// Asks a node; `client` has the address at which the node was reached.
pub(crate) async fn nodes(client: &Client, conn: &mut MultiplexedConnection) -> RedisResult<Nodes> {
    let slots: Value = redis::cmd("CLUSTER").arg("SLOTS").query_async(conn).await?;
    let host = match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.as_str(),
        _ => "127.0.0.1",
    };
    Ok(parse(&slots, host))
}

/// The primaries and their slots.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots(Vec<(RangeInclusive<u16>, (String, u16))>);

impl Slots {
    /// Decodes the answer to CLUSTER SLOTS of the node at this host.
    pub(crate) fn parse(slots: &Value, asked: &str) -> Self {
        let ranges = array(slots).iter().filter_map(|range| {
            let [Value::Int(first), Value::Int(last), primary, ..] = array(range) else {
                return None;
            };
            let ends = u16::try_from(*first).ok()?..=u16::try_from(*last).ok()?;
            Some((ends, address(primary, asked)?))
        });
        let mut ranges: Vec<_> = ranges.collect();
        // Nodes may list them in different orders.
        ranges.sort_by_key(|(range, _)| *range.start());
        Self(ranges)
    }

    pub(crate) fn primary(&self, key: &[u8]) -> Option<&(String, u16)> {
        self.at(slot(key))
    }

    /// The primary that owns the slot.
    pub(crate) fn at(&self, slot: u16) -> Option<&(String, u16)> {
        self.0.iter().find(|(range, _)| range.contains(&slot)).map(|(_, node)| node)
    }

    /// The first slot of a primary.
    pub(crate) fn first_of(&self, primary: &(String, u16)) -> Option<u16> {
        self.0.iter().find(|(_, node)| node == primary).map(|(range, _)| *range.start())
    }

    /// Each primary once, ordered by its first slot.
    pub(crate) fn primaries(&self) -> impl Iterator<Item = &(String, u16)> {
        let is_first = |at: &usize| self.0[..*at].iter().all(|(_, node)| *node != self.0[*at].1);
        (0..self.0.len()).filter(is_first).map(|at| &self.0[at].1)
    }
}

/// The slot of a key, as in the [specification]: CRC16 (XMODEM) of the part in braces if there is
/// one, otherwise of the whole key.
///
/// [specification]: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, byte| {
        let [high, low] = crc.to_be_bytes();
        u16::from_be_bytes([low, 0]) ^ CRC16[usize::from(high ^ byte)]
    });
    crc % 16_384
}

/// The CRC remainders of all bytes.
const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Each range of slots is an array of its ends, its primary and the replicas; each node is an array
/// of host, port and more. A node that does not know its own host omits it: that is the node that
/// was asked.
pub(crate) fn parse(slots: &Value, asked: &str) -> Nodes {
    let mut nodes = Nodes::default();
    for range in array(slots) {
        for (at, node) in array(range).iter().skip(2).enumerate() {
            let Some(node) = address(node, asked) else { continue };
            if at == 0 {
                nodes.primaries.push(node.clone());
            }
            nodes.all.push(node);
        }
    }
    for list in [&mut nodes.primaries, &mut nodes.all] {
        list.sort();
        list.dedup();
    }
    nodes
}

fn address(node: &Value, asked: &str) -> Option<(String, u16)> {
    let [host, Value::Int(port), ..] = array(node) else { return None };
    let host = match host {
        Value::BulkString(host) => String::from_utf8_lossy(host).into_owned(),
        Value::SimpleString(host) => host.clone(),
        _ => String::new(),
    };
    let host = if matches!(&*host, "" | "?") { asked.to_owned() } else { host };
    Some((host, u16::try_from(*port).ok()?))
}

/// Whether a node is a working member of the cluster, by another node's answer to CLUSTER NODES:
/// one line per node, with its id, address and flags. A node that knows only itself gives no answer
/// to that.
pub(crate) fn belongs(list: &str, id: &str) -> bool {
    if list.lines().count() < 2 {
        return true;
    }
    list.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(id)
            && fields.nth(1).is_some_and(|flags| flags.split(',').all(|flag| flag != "fail"))
    })
}

fn array(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots() {
        let answer = b"*2\r\n\
            *4\r\n:0\r\n:5460\r\n*3\r\n$9\r\n127.0.0.1\r\n:7000\r\n$1\r\na\r\n*3\r\n$0\r\n\r\n:7003\r\n$1\r\nd\r\n\
            *3\r\n:5461\r\n:16383\r\n*3\r\n$-1\r\n:7001\r\n$1\r\nb\r\n";
        let nodes = parse(&redis::parse_redis_value(answer).unwrap(), "asked");
        let node = |host: &str, port| (host.to_owned(), port);
        assert_eq!(nodes.primaries, [node("127.0.0.1", 7000), node("asked", 7001)]);
        assert_eq!(nodes.all.len(), 3);
        assert!(nodes.all.contains(&node("asked", 7003)));
    }

    #[test]
    fn slots_of_keys() {
        // The answers of CLUSTER KEYSLOT of Redis 7.
        for (key, expected) in [
            ("foo", 12_182),
            ("123456789", 12_739),
            ("{foo}bar", 12_182),
            ("a{foo}{bar}", 12_182),
            ("{}foo", 9_500),
            ("", 0),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn members() {
        let list = "a 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-5460\n\
            b 127.0.0.1:7001@17001 master,fail? - 0 0 2 connected 5461-16383\n\
            c 127.0.0.1:7002@17002 slave,fail a 0 0 1 disconnected\n";
        assert!(belongs(list, "a"));
        assert!(belongs(list, "b"), "only suspected");
        assert!(!belongs(list, "c"), "failed");
        assert!(!belongs(list, "d"), "unknown");
        assert!(belongs("a 127.0.0.1:7000@17000 myself,master - 0 0 1 connected\n", "d"));
    }
}
