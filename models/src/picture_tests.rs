use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};
use proptest::prelude::*;

use super::*;

/// Small enough that a decoder which ignored them would be noticed.
const SMALL: Limits = Limits { max_bytes: 1 << 16, max_side: 256, max_pixels: 20_000 };

fn encode(picture: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn gradient(width: u32, height: u32) -> RgbPicture {
    RgbPicture::from_fn(width, height, |x, y| [(x * 5) as u8, (y * 7) as u8, (x * y) as u8])
}

fn rgb_image(picture: &RgbPicture) -> DynamicImage {
    ImageBuffer::<Rgb<u8>, _>::from_raw(picture.width(), picture.height(), picture.pixels().to_vec())
        .unwrap()
        .into()
}

fn files() -> [Vec<u8>; 3] {
    let picture = rgb_image(&gradient(40, 30));
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP].map(|format| encode(picture.clone(), format))
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// A PNG whose header claims this size, checksum and all.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut png = gradient(8, 8).encode_png();
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

/// A PNG with a chunk put in after the header.
fn png_with_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let png = gradient(8, 8).encode_png();
    let mut chunk = (data.len() as u32).to_be_bytes().to_vec();
    chunk.extend(kind);
    chunk.extend(data);
    let crc = crc32(&chunk[4..]);
    chunk.extend(crc.to_be_bytes());
    [&png[..33], &chunk, &png[33..]].concat()
}

#[test]
fn every_format_is_recognised_by_its_bytes() {
    let picture = gradient(40, 30);
    let [png, jpeg, webp] = files().map(|file| RgbPicture::decode(&file, &SMALL).unwrap());
    assert_eq!((&png, &webp), (&picture, &picture));
    assert!(jpeg.mean_abs_difference(&picture).unwrap() < 20.0);
}

#[test]
fn png_round_trips_and_is_deterministic() {
    for (width, height) in [(1, 1), (3, 200), (129, 64)] {
        let picture = gradient(width, height);
        let png = picture.encode_png();
        assert_eq!(RgbPicture::decode(&png, &SMALL).unwrap(), picture);
        assert_eq!(png, picture.encode_png());
    }
}

#[test]
fn transparency_is_laid_on_white() {
    let pixels = ImageBuffer::from_fn(3, 1, |x, _| Rgba([10u8, 20, 30, [0, 51, 255][x as usize]]));
    let picture = RgbPicture::decode(&encode(pixels, ImageFormat::Png), &SMALL).unwrap();
    assert_eq!(picture.pixels(), [255, 255, 255, 206, 208, 210, 10, 20, 30]);
}

#[test]
fn grey_and_sixteen_bits_become_eight_bit_rgb() {
    let deep = ImageBuffer::from_fn(2, 1, |x, _| Rgb([[0u16, 65_535][x as usize], 257, 32_896]));
    let picture = RgbPicture::decode(&encode(deep, ImageFormat::Png), &SMALL).unwrap();
    assert_eq!(picture.pixels(), [0, 1, 128, 255, 1, 128]);
    let grey = ImageBuffer::from_pixel(1, 1, Luma([77u8]));
    assert_eq!(RgbPicture::decode(&encode(grey, ImageFormat::Png), &SMALL).unwrap().pixels(), [77; 3]);
    let faint = ImageBuffer::from_pixel(1, 1, LumaA([0u16, 0x8080]));
    assert_eq!(RgbPicture::decode(&encode(faint, ImageFormat::Png), &SMALL).unwrap().pixels(), [127; 3]);
}

#[test]
fn exif_orientation_is_applied() {
    let picture = rgb_image(&gradient(40, 30));
    let mut jpeg = encode(picture, ImageFormat::Jpeg);
    // Orientation 6: rotate by a quarter turn clockwise to see it upright.
    let tiff = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let mut segment = vec![0xff, 0xe1];
    segment.extend((tiff.len() as u16 + 2).to_be_bytes());
    segment.extend(tiff);
    jpeg.splice(2..2, segment);
    let upright = RgbPicture::decode(&jpeg, &SMALL).unwrap();
    assert_eq!((upright.width(), upright.height()), (30, 40));
}

#[test]
fn alpha_is_read_where_there_is_some() {
    let half = ImageBuffer::from_fn(3, 2, |x, _| Rgba([9u8, 9, 9, [0, 128, 255][x as usize]]));
    let (size, alpha) = RgbPicture::decode_alpha(&encode(half, ImageFormat::Png), &SMALL).unwrap().unwrap();
    assert_eq!((size.width.get(), size.height.get()), (3, 2));
    assert_eq!(alpha, [0, 128, 255, 0, 128, 255]);
    for file in files() {
        assert_eq!(RgbPicture::decode_alpha(&file, &SMALL).unwrap(), None);
        let size = RgbPicture::size_of(&file, &SMALL).unwrap();
        assert_eq!(size, RgbPicture::decode(&file, &SMALL).unwrap().size());
    }
}

#[test]
fn sizes_are_refused_by_the_header_alone() {
    for (width, height) in [(257, 1), (1, 257), (200, 200), (60_000, 60_000)] {
        let error = RgbPicture::decode(&png_claiming(width, height), &SMALL).unwrap_err();
        assert_eq!(error.reason(), "too_many_pixels", "{width}×{height}: {error}");
        assert!(error.to_string().contains("at most 256 a side and 20000 pixels"));
    }
    // A row of this does not even fit the decoder's memory limit.
    assert!(RgbPicture::decode(&png_claiming(0x7fff_ffff, 0x7fff_ffff), &SMALL).is_err());
    let huge = encode(rgb_image(&gradient(200, 200)), ImageFormat::WebP);
    assert_eq!(RgbPicture::decode(&huge, &SMALL).unwrap_err().reason(), "too_many_pixels");
    let mut jpeg = files()[1].clone();
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].fill(0xff);
    assert_eq!(RgbPicture::decode(&jpeg, &SMALL).unwrap_err().reason(), "too_many_pixels");
}

#[test]
fn what_is_no_picture_is_refused_with_what_to_do() {
    let cases: [(&[u8], &str); 6] = [
        (b"", "unknown_format"),
        (b"hello", "unknown_format"),
        (b"GIF89a\x01\0\x01\0", "unknown_format"),
        (b"BM\0\0\0\0", "unknown_format"),
        (b"\x89PNG\r\n\x1a\n", "damaged_picture"),
        (&[0; SMALL.max_bytes + 1], "file_too_large"),
    ];
    for (bytes, reason) in cases {
        assert_eq!(RgbPicture::decode(bytes, &SMALL).unwrap_err().reason(), reason);
    }
    for file in [&files()[0], &files()[2]] {
        assert!(RgbPicture::decode(&file[..file.len() / 2], &SMALL).is_err());
    }
}

#[test]
fn pictures_without_pixels_are_refused() {
    for (width, height) in [(0, 0), (0, 5), (5, 0)] {
        assert!(RgbPicture::decode(&png_claiming(width, height), &SMALL).is_err());
        assert_eq!(RgbPicture::new(width, height, Vec::new()).unwrap_err().reason(), "sample_count");
    }
    assert!(RgbPicture::new(2, 2, vec![0; 11]).is_err());
    assert!(RgbPicture::new(u32::MAX, u32::MAX, vec![0; 3]).is_err());
}

#[test]
fn metadata_bombs_are_bounded() {
    // The compressed rows of a large black picture, as a colour profile.
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Best, FilterType::NoFilter)
        .write_image(&vec![0; 8 << 20], 4096, 2048, ExtendedColorType::L8)
        .unwrap();
    let start = png.windows(4).position(|kind| kind == b"IDAT").unwrap();
    let length = u32::from_be_bytes(png[start - 4..start].try_into().unwrap()) as usize;
    let profile = [b"icc\0\0", &png[start + 4..start + 4 + length]].concat();
    assert!(profile.len() < SMALL.max_bytes);
    // The profile is not needed: a decoder may skip it or refuse the file.
    if let Ok(picture) = RgbPicture::decode(&png_with_chunk(b"iCCP", &profile), &SMALL) {
        assert_eq!(picture, gradient(8, 8));
    }
}

#[test]
fn crops_and_thumbnails_keep_content_and_proportions() {
    let picture = gradient(50, 40);
    let part = picture.crop(10, 5, 3, 2);
    assert_eq!(
        part,
        RgbPicture::from_fn(3, 2, |x, y| {
            let at = (((y + 5) * 50 + x + 10) * 3) as usize;
            picture.pixels()[at..at + 3].try_into().unwrap()
        })
    );
    assert_eq!(picture.crop(0, 0, 50, 40), picture);
    let size = |picture: &RgbPicture| (picture.width(), picture.height());
    assert_eq!(size(&picture.thumbnail(25)), (25, 20));
    assert_eq!(size(&gradient(1, 200).thumbnail(10)), (1, 10));
    assert_eq!(picture.thumbnail(50), picture);
}

#[test]
#[should_panic(expected = "beyond the picture")]
fn a_crop_beyond_the_edge_is_a_bug() {
    gradient(5, 5).crop(u32::MAX, 0, 2, 2);
}

#[test]
fn difference_is_the_mean_over_samples() {
    let (black, grey) =
        (RgbPicture::from_fn(2, 2, |_, _| [0; 3]), RgbPicture::from_fn(2, 2, |x, _| [x as u8 * 9; 3]));
    assert_eq!(black.mean_abs_difference(&grey), Some(4.5));
    assert_eq!(grey.mean_abs_difference(&grey), Some(0.0));
    assert_eq!(black.mean_abs_difference(&gradient(2, 3)), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_files_never_panic(
        which in 0usize..3,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        insert in prop::option::of((any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 1..40))),
    ) {
        let mut file = files()[which].clone();
        for (at, value) in edits {
            let at = at.index(file.len());
            file[at] = value;
        }
        if let Some((at, bytes)) = insert {
            let at = at.index(file.len());
            file.splice(at..at, bytes);
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(picture) = RgbPicture::decode(&file, &SMALL) {
            prop_assert!(u64::from(picture.width()) * u64::from(picture.height()) <= SMALL.max_pixels);
        }
    }

    #[test]
    fn mutated_png_data_behind_good_checksums_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        kind in prop::sample::select(vec![*b"iCCP", *b"zTXt", *b"iTXt", *b"eXIf", *b"tRNS", *b"PLTE", *b"acTL", *b"fcTL", *b"gAMA"]),
        data in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut file = png_with_chunk(&kind, &data);
        let start = file.windows(4).position(|kind| kind == b"IDAT").unwrap();
        let end = start + 4 + u32::from_be_bytes(file[start - 4..start].try_into().unwrap()) as usize;
        for (at, value) in edits {
            let at = start + 4 + at.index(end - start - 4);
            file[at] = value;
        }
        let crc = crc32(&file[start..end]);
        file[end..end + 4].copy_from_slice(&crc.to_be_bytes());
        let _ = RgbPicture::decode(&file, &SMALL);
    }
}
