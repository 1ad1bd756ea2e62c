//! The node id in a certificate.

use towline_engine::ids::NodeId;
use towline_engine::transport::CertRefusal;
use webpki::EndEntityCert;

/// What a URI name that names a node begins with; its id follows in decimal.
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

/// Only the one way of writing an id that [`node_uri`] has, so that two names never mean the same node.
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
}
