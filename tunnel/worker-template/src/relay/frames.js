// The frames of the relay: bytes to values and back.
//
// Here: one binary WebSocket message holds one or more whole frames, `u8 type, u8 flags, u16 0, u32 stream, u32 length,
// payload`, big-endian. Not here: which frame may come when (link.js).

import { utf8 } from '../bytes.js';

export const HELLO = 1;
export const REQ_HEAD = 2;
export const DATA = 3;
export const RESP_HEAD = 4;
export const RESET = 5;
export const WINDOW = 6;
export const PING = 7;
export const PONG = 8;
export const GOAWAY = 9;

/** Flag: the sender's half of the stream ends with this frame. */
export const END = 1;

/** Why a stream is over before its end. */
export const RESET_CODES = { cancel: 1, timeout: 2, refused: 3, internal: 4, flow: 5 };

/** What either side takes. */
export const LIMITS = { maxFrame: 65_536, window: 262_144, connWindow: 4_194_304 };
export const MESSAGE_BYTES = 4 * 1024 * 1024;
export const HEAD_BYTES = 512 * 1024;

const HEADER = 12;
const NOTHING = new Uint8Array(0);
const decoder = new TextDecoder('utf-8', { fatal: true });

/** A message that is not of its form; the connection ends with it. */
export class FrameFault extends Error {}

/** One frame as a message of its own. */
export function frame(type, flags, stream, payload = NOTHING) {
  const bytes = new Uint8Array(HEADER + payload.byteLength);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, type);
  view.setUint8(1, flags);
  view.setUint32(4, stream);
  view.setUint32(8, payload.byteLength);
  bytes.set(payload, HEADER);
  return bytes;
}

/** A value as JSON. */
export const jsonPayload = (value) => utf8(JSON.stringify(value));

/** A number of 32 bits, and a text where there is one. */
export function numberPayload(number, text = '') {
  const words = utf8(text);
  const bytes = new Uint8Array(4 + words.byteLength);
  new DataView(bytes.buffer).setUint32(0, number);
  bytes.set(words, 4);
  return bytes;
}

/** The value of a JSON payload. */
export function jsonOf(payload) {
  try {
    return JSON.parse(decoder.decode(payload));
  } catch {
    throw new FrameFault('a head is not JSON');
  }
}

/** The number of a payload that starts with one. */
export function numberOf(payload, exact) {
  if (payload.byteLength < 4 || (exact && payload.byteLength !== 4)) throw new FrameFault('a number is not of its length');
  return new DataView(payload.buffer, payload.byteOffset).getUint32(0);
}

/**
 * The frames of one message.
 *
 * @param {ArrayBuffer} message
 * @yields {{type: number, end: boolean, stream: number, payload: Uint8Array}}
 */
export function* framesOf(message) {
  const view = new DataView(message);
  if (message.byteLength === 0) throw new FrameFault('a message is empty');
  for (let at = 0; at < message.byteLength; ) {
    if (message.byteLength - at < HEADER) throw new FrameFault('a message ends within a frame');
    const type = view.getUint8(at);
    const flags = view.getUint8(at + 1);
    const stream = view.getUint32(at + 4);
    const length = view.getUint32(at + 8);
    if (flags > END || view.getUint16(at + 2) !== 0) throw new FrameFault('a frame has unknown flags');
    if (length > (type === RESP_HEAD ? HEAD_BYTES : LIMITS.maxFrame)) throw new FrameFault('a frame is too long');
    if (message.byteLength - at - HEADER < length) throw new FrameFault('a message ends within a frame');
    yield { type, end: flags === END, stream, payload: new Uint8Array(message, at + HEADER, length) };
    at += HEADER + length;
  }
}
