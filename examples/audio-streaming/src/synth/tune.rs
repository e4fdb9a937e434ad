//! The score: chords, a melody that walks on the pentatonic scale, bass, arpeggio and drums.

use super::math::note_hz;
use super::noise::Noise;
use super::pluck::Pluck;
use super::{Track, drums, pad};

/// Seconds of a beat: 100 in a minute.
const BEAT: f32 = 0.6;
/// Seconds of a bar of four beats.
pub(super) const BAR_SECONDS: f64 = 2.4;
/// Bars of the whole programme.
pub(super) const BARS: usize = 12;
/// Bars (first, end) in which the melody is silent and somebody speaks.
pub(super) const SPOKEN_BARS: [(usize, usize); 2] = [(4, 6), (10, 12)];

/// Bass note and the notes of the pad, bar after bar: C, a minor, F, G.
const CHORDS: [(i32, [i32; 4]); 4] = [(36, [55, 60, 64, 67]), (45, [57, 60, 64, 67]), (41, [53, 57, 60, 64]), (43, [55, 59, 62, 67])];
/// Notes of the melody: C major pentatonic over one and a half octaves.
const SCALE: [i32; 9] = [64, 67, 69, 72, 74, 76, 79, 81, 84];
/// Lengths of the notes of a bar in eighths.
const RHYTHMS: [&[u8]; 5] = [&[2, 2, 2, 2], &[3, 1, 2, 2], &[2, 1, 1, 4], &[1, 1, 2, 3, 1], &[2, 2, 1, 1, 2]];
/// Which note of the chord each eighth of the accompaniment has.
const ARPEGGIOS: [[usize; 8]; 3] = [[0, 1, 2, 3, 2, 1, 2, 3], [0, 2, 1, 3, 2, 3, 1, 2], [0, 1, 3, 2, 0, 1, 3, 2]];

/// Plays the whole tune.
pub(super) fn perform(track: &mut Track, noise: &mut Noise) {
    let mut step = 3;
    let arpeggio = *noise.pick(&ARPEGGIOS);
    for bar in 0..BARS {
        let at = bar as f32 * BAR_SECONDS as f32;
        let (bass, notes) = CHORDS[bar % CHORDS.len()];
        let spoken = SPOKEN_BARS.iter().any(|(begin, end)| (*begin..*end).contains(&bar));
        pad::chord(track, at, 4.0 * BEAT - 0.2, &notes, if spoken { 0.018 } else { 0.03 });
        if spoken {
            accompany_quietly(track, at, bass, noise);
        } else {
            accompany(track, at, bass, &notes, &arpeggio, noise);
            step = melody(track, at, &notes, step, noise);
            beat(track, at, bar, noise);
        }
    }
}

fn accompany(track: &mut Track, at: f32, bass: i32, notes: &[i32; 4], arpeggio: &[usize; 8], noise: &mut Noise) {
    for (half, note) in [bass, bass + 7].into_iter().enumerate() {
        let at = at + half as f32 * 2.0 * BEAT;
        let hz = note_hz(note);
        Pluck { at, hz, hold: 1.1, ring: 2.5, gain: 0.3, bright: 0.12 }.play(track, noise);
    }
    for (eighth, which) in arpeggio.iter().enumerate() {
        let gain = if eighth % 4 == 0 { 0.13 } else { 0.09 } * noise.between(0.85, 1.1);
        let at = at + eighth as f32 * BEAT / 2.0 + noise.between(0.0, 0.008);
        let hz = note_hz(notes[*which]);
        Pluck { at, hz, hold: 0.5, ring: 2.0, gain, bright: 0.35 }.play(track, noise);
    }
}

/// A bass note and a strummed chord under the voice.
fn accompany_quietly(track: &mut Track, at: f32, bass: i32, noise: &mut Noise) {
    Pluck { at, hz: note_hz(bass), hold: 2.0, ring: 3.0, gain: 0.14, bright: 0.1 }.play(track, noise);
    for beat in 0..4 {
        drums::hi_hat(track, at + beat as f32 * BEAT, 0.012, noise);
    }
}

/// A bar of melody from `step` of the scale on; gives the step that it ends with.
fn melody(track: &mut Track, at: f32, notes: &[i32; 4], mut step: usize, noise: &mut Noise) -> usize {
    let mut eighth = 0;
    for (index, eighths) in noise.pick(&RHYTHMS).iter().enumerate() {
        let walk = *noise.pick(&[-2i32, -1, -1, 1, 1, 2]);
        step = (step as i32 + walk).clamp(0, SCALE.len() as i32 - 1) as usize;
        if index == 0 {
            step = nearest_of_chord(step, notes);
        }
        let length = f32::from(*eighths) * BEAT / 2.0;
        if index == 0 || noise.happens(0.9) {
            let at = at + eighth as f32 * BEAT / 2.0 + noise.between(0.0, 0.006);
            let (hz, gain) = (note_hz(SCALE[step]), noise.between(0.24, 0.3));
            Pluck { at, hz, hold: length + 0.25, ring: 2.2, gain, bright: 0.6 }.play(track, noise);
        }
        eighth += *eighths;
    }
    step
}

/// The step nearest to `step` whose note is, in some octave, one of the chord's.
fn nearest_of_chord(step: usize, notes: &[i32; 4]) -> usize {
    let in_chord = |index: &usize| notes.iter().any(|note| (note - SCALE[*index]) % 12 == 0);
    (0..SCALE.len()).filter(in_chord).min_by_key(|index| index.abs_diff(step)).unwrap_or(step)
}

fn beat(track: &mut Track, at: f32, bar: usize, noise: &mut Noise) {
    for eighth in 0..8 {
        let at = at + eighth as f32 * BEAT / 2.0;
        match eighth {
            0 | 4 => drums::bass_drum(track, at, 0.3),
            2 | 6 => drums::snare(track, at, 0.09, noise),
            7 if bar % 2 == 1 => drums::bass_drum(track, at, 0.18),
            _ => {}
        }
        drums::hi_hat(track, at, if eighth % 2 == 0 { 0.05 } else { 0.03 }, noise);
    }
}
