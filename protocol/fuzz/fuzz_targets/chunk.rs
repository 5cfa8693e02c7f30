//! A chunk's stored bytes under a schema that the same bytes describe.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zunft_protocol::chunk::{Chunk, Column, SampleChunk, Schema};
use zunft_protocol::embodiment::{Dtype, Encoding};

fuzz_target!(|input: (Vec<(u8, u16)>, Vec<u8>)| {
    let (columns, stored) = input;
    let columns = columns.iter().enumerate().map(|(i, (dtype, values))| Column {
        name: i.to_string(),
        dtype: [Dtype::F32, Dtype::F64, Dtype::I64, Dtype::U8][usize::from(dtype % 4)],
        values: u32::from(*values),
    });
    let schema = Schema { columns: columns.collect(), encoding: None };
    for encoding in [Encoding::Jpeg, Encoding::H264] {
        if let Ok(chunk) = SampleChunk::decode(&stored, encoding) {
            assert!(chunk.samples().iter().all(|sample| !sample.bytes.is_empty()));
        }
    }
    if schema.check().is_err() {
        return;
    }
    if let Ok(chunk) = Chunk::decode(&stored, &schema) {
        for column in &schema.columns {
            let bytes = chunk.column(&column.name).expect("every column of the schema is in the chunk");
            assert_eq!(bytes.len(), column.step_bytes() * chunk.steps() as usize);
            let _values = chunk.column_f32(&column.name);
        }
    }
});
