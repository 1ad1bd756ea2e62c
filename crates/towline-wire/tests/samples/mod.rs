//! The golden bytes of each kind of frame. They never change.
#![allow(dead_code)] // each program uses its part

use bytes::Bytes;
use towline_wire::{decode_frame, pb};

pub(crate) const HELLO: &str = "0a150a0263311001180221080706050403020128013002";
pub(crate) const WELCOME: &str = "120d08021108070605040302011801";
pub(crate) const REFUSED: &str = concat!(
    "1a400803123a6e6f2067726f75702068617320737461727465642068657265207965742c20736f20",
    "6e6f646520372063616e6e6f7420626520636865636b65642007",
);
pub(crate) const REFUSED_BY_FOUNDERS: &str = concat!(
    "1a4a080312376e6f64652037206973206e6f742061206d656d626572206f6620612067726f757020",
    "74686174206861732073746172746564206865726520073a0b0803111817161514131211",
);
pub(crate) const BATCH: &str = concat!(
    "222f0a2d080312290803100218012005280330043a0f10051805220464617461320363747840049901181716151413",
    "1211",
);
pub(crate) const HEARTBEAT: &str = "22130a110803120d08081002180120054004900106";
pub(crate) const HEARTBEAT_RESPONSE: &str = "22110a0f0803120b0809100118022005880107";
pub(crate) const HEARTBEAT_RESPONSE_OF_A_LOW_DISK: &str = "22140a120803120e0809100118022005880107a00101";
pub(crate) const NACKS: &str = "2a0c0a04080110010a0408021004";
pub(crate) const NACK_OF_LOST_ENTRIES: &str = "2a0a0a08080310051837203d";
pub(crate) const NACK_OF_A_FULL_DISK: &str = "2a060a0408031007";
pub(crate) const HELLO_OF_A_SNAPSHOT: &str = "0a150a0263311001180221080706050403020128013003";
pub(crate) const OFFER: &str = concat!(
    "32770a1a08071002180120054a10120e0a070a02010212010310ac0218041242080310ac02180422",
    "070a0201021201032a170801120a677270633a2f2f613a311908070605040302012a0e0802120a71",
    "7569633a2f2f623a3231181716151413121118e8072210000102030405060708090a0b0c0d0e0f2806",
);
pub(crate) const ACCEPTED: &str = "3a020800";
pub(crate) const ALREADY_HAVE: &str = "3a0310ac02";
pub(crate) const OFFER_REFUSED: &str = "3a1f1a1d080412157374616c65207465726d3a20352062656c6f77203618062005";
pub(crate) const CHUNK: &str = "420e08ac021204626f64791d04030201";
pub(crate) const TRAILER: &str = "4a1508b0021210000102030405060708090a0b0c0d0e0f";
pub(crate) const PROGRESS: &str = "520508ac021002";
pub(crate) const PROGRESS_OF_PHASE_5: &str = "520508ac021005";
pub(crate) const PROGRESS_OF_PHASE_MINUS_1: &str = "520e08ac0210ffffffffffffffffff01";
pub(crate) const COMMITTED: &str = "5a0308ac02";
pub(crate) const TAKEN: &str = "620308ac02";
pub(crate) const NOT_TAKEN: &str = "5a0d120b080512076368756e6b2032";

pub(crate) fn unhex(text: &str) -> Bytes {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// The frames of a transfer as its listener receives them.
pub(crate) const OF_A_DIALLER: [&str; 4] = [HELLO_OF_A_SNAPSHOT, OFFER, CHUNK, TRAILER];
/// The frames of a transfer as its dialler receives them.
pub(crate) const OF_A_LISTENER: [&str; 5] = [WELCOME, ACCEPTED, PROGRESS, COMMITTED, TAKEN];
/// The frames of lanes, and refusals.
const OF_LANES: [&str; 8] = [
    HELLO,
    REFUSED,
    BATCH,
    HEARTBEAT,
    HEARTBEAT_RESPONSE_OF_A_LOW_DISK,
    NACKS,
    NACK_OF_LOST_ENTRIES,
    NACK_OF_A_FULL_DISK,
];

pub(crate) fn samples() -> Vec<pb::Frame> {
    [&OF_A_DIALLER[..], &OF_A_LISTENER, &OF_LANES].concat().into_iter().map(sample).collect()
}

pub(crate) fn sample(golden: &str) -> pb::Frame {
    decode_frame(unhex(golden)).unwrap()
}
