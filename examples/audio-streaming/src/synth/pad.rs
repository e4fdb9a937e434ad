//! A soft pad: slow, slightly detuned sines for the notes of a chord.

use super::Track;
use super::math::{TAU, note_hz, sine};

const ATTACK: f32 = 0.5;
const RELEASE: f32 = 0.7;
/// Strength of the first, second and third partial.
const PARTIALS: [f32; 3] = [1.0, 0.3, 0.1];
const DETUNE: f32 = 0.0017;

/// Plays the chord of `notes` from `at` for `hold` seconds (and dies away after that).
pub(super) fn chord(track: &mut Track, at: f32, hold: f32, notes: &[i32], gain: f32) {
    let rate = track.rate;
    let len = track.len_of(hold + RELEASE);
    let envelope: Vec<f32> = (0..len)
        .map(|i| {
            let t = i as f32 / rate;
            gain * smooth(t / ATTACK) * smooth((hold + RELEASE - t) / RELEASE)
        })
        .collect();
    let out = track.window(at, len);
    for (index, note) in notes.iter().enumerate() {
        for detune in [1.0 - DETUNE, 1.0 + DETUNE] {
            for (partial, strength) in PARTIALS.iter().enumerate() {
                let hz = note_hz(*note) * detune * (partial + 1) as f32;
                if hz < rate * 0.45 {
                    let phase = index as f32 * 0.37 + detune * 100.0;
                    add_sine(out, &envelope, hz / rate, phase, *strength);
                }
            }
        }
    }
}

/// Adds a sine by the recurrence `s[n] = 2 cos(w) s[n-1] - s[n-2]`.
fn add_sine(out: &mut [f32], envelope: &[f32], turns: f32, phase: f32, gain: f32) {
    let twice_cos = 2.0 * exact_cosine(f64::from(turns * TAU));
    let mut last = f64::from(sine(phase - turns));
    let mut now = f64::from(sine(phase));
    for (sample, level) in out.iter_mut().zip(envelope) {
        *sample += gain * level * now as f32;
        (now, last) = (twice_cos * now - last, now);
    }
}

/// From 0 to 1 without corners.
fn smooth(x: f32) -> f32 {
    let x = x.clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x)
}

/// Cosine of `x` radians, 0 to π, at full width: the recurrence multiplies its error.
fn exact_cosine(x: f64) -> f64 {
    // cos(x) = 2 cos²(x/2) - 1, three times, from a series at x/8.
    let s = (x / 8.0) * (x / 8.0);
    let mut c = 1.0 - s / 2.0 * (1.0 - s / 12.0 * (1.0 - s / 30.0 * (1.0 - s / 56.0 * (1.0 - s / 90.0))));
    for _ in 0..3 {
        c = 2.0 * c * c - 1.0;
    }
    c
}
