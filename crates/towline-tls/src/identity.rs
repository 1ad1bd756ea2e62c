//! The node id in a certificate.

use towline_engine::ids::NodeId;
use towline_engine::transport::CertRefusal;
use webpki::EndEntityCert;

/// The prefix of a URI name that names a node; the id follows in decimal.
pub const NODE_URI_PREFIX: &str = "towline://node/";

/// The URI name of a node's certificate.
pub fn node_uri(node: NodeId) -> String {
    format!("{NODE_URI_PREFIX}{node}")
}

/// The node a certificate was issued to.
pub(crate) fn node_of(cert: &EndEntityCert<'_>) -> Result<NodeId, CertRefusal> {
    let mut ours = cert.valid_uri_names().filter(|uri| uri.starts_with("towline:"));
    match (ours.next(), ours.next()) {
        (Some(uri), None) => parse(uri).ok_or(CertRefusal::NoNode),
        _ => Err(CertRefusal::NoNode),
    }
}

/// Accepts only the form that [`node_uri`] writes, so that two names never mean the same node.
fn parse(uri: &str) -> Option<NodeId> {
    let id = NodeId::new(uri.strip_prefix(NODE_URI_PREFIX)?.parse().ok()?)?;
    (node_uri(id) == uri).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_exactly_one_name() {
        assert_eq!(parse("towline://node/7"), NodeId::new(7));
        assert_eq!(parse(&node_uri(NodeId::new(u64::MAX).unwrap())), NodeId::new(u64::MAX));
        for bad in ["0", "07", "+7", "-7", " 7", "7 ", "7/", "", "18446744073709551616", "7?x", "%37"] {
            assert_eq!(parse(&format!("{NODE_URI_PREFIX}{bad}")), None, "{bad}");
        }
        assert_eq!(parse("TOWLINE://node/7"), None);
    }

    #[test]
    fn a_random_name_that_parses_is_the_only_name_of_its_node() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut nodes = 0;
        for _ in 0..100_000 {
            let mut name = match random.u8(..3) {
                0 => String::new(),
                1 => NODE_URI_PREFIX.to_owned(),
                _ => node_uri(NodeId::new((random.u64(..) >> random.u32(..64)).max(1)).unwrap()),
            };
            for _ in 0..random.usize(..4) {
                match random.u8(..3) {
                    0 => name.push(random.char('0'..='9')),
                    1 => name.insert(random.usize(..=name.len()), random.char(' '..='~')),
                    _ => drop(name.pop()),
                }
            }
            if let Some(node) = parse(&name) {
                assert_eq!(node_uri(node), name);
                nodes += 1;
            }
        }
        assert!(nodes > 10_000, "{nodes} of the names are of nodes");
    }
}
