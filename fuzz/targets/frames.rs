//! The protocol between a guest's agent and the host: frames, greetings, directory listings. The result does not
//! depend on how the bytes are split.
#![no_main]

use banger_proto::guest::{
    Decoder, Frame,
    hello::{HOST_LENGTH, HostHello, take_answer},
    listing::{Entry, Reader},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: { banger_fuzz::sow("frames") },
    |input: &[u8]| {
        let Some(([kind, piece], bytes)) = input.split_first_chunk() else { return };
        let piece = usize::from(*piece).max(1);
        match kind {
            b'f' => {
                let (whole, is_good) = frames(bytes, bytes.len().max(1));
                assert_eq!((whole.clone(), is_good), frames(bytes, piece));
                let again: Vec<u8> = whole.iter().flat_map(Frame::encode).collect();
                assert_eq!(frames(&again, piece), (whole, true));
            }
            b'h' => {
                let mut buffer = Vec::new();
                let asked = HostHello::new([7; 16], "0123456789abcdef0123456789abcdef").unwrap();
                for bytes in bytes.chunks(piece) {
                    buffer.extend_from_slice(bytes);
                    let _ = take_answer(&mut buffer.clone(), &asked);
                    while let Some(hello) = HostHello::take(&mut buffer) {
                        let again = HostHello::take(&mut hello.encode().to_vec());
                        assert_eq!(again.map(|again| again.encode()), Some(hello.encode()));
                    }
                    assert!(buffer.len() < HOST_LENGTH);
                }
            }
            b'l' => {
                let whole = listing(bytes, bytes.len().max(1));
                if let (Some(whole), Some(in_pieces)) = (&whole, listing(bytes, piece)) {
                    assert_eq!(*whole, in_pieces);
                    let mut again = Vec::new();
                    whole.iter().for_each(|entry| entry.write(&mut again));
                    assert_eq!(listing(&again, again.len().max(1)).as_ref(), Some(whole));
                }
            }
            _ => {}
        }
    }
);

fn frames(bytes: &[u8], piece: usize) -> (Vec<Frame>, bool) {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for bytes in bytes.chunks(piece) {
        decoder.push(bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

fn listing(bytes: &[u8], piece: usize) -> Option<Vec<Entry>> {
    let (mut reader, mut entries) = (Reader::default(), Vec::new());
    for bytes in bytes.chunks(piece) {
        entries.extend(reader.push(bytes).ok()?);
    }
    reader.end().ok()?;
    Some(entries)
}
