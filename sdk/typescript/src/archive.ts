/**
 * The tar archives with one file that `banger cp` reads and writes.
 *
 * @module
 */

import { NotAFileError, OutputTooLargeError, UnexpectedReplyError } from "./errors.js";

/** The unit of an archive, in bytes. */
const BLOCK = 512;
/** The longest name that a header has room for, in bytes. */
const MAX_NAME = 100;

/** Returns an archive with this file. */
export function pack(name: string, data: Buffer, mode: number): Buffer {
  const bytes = Buffer.from(name);
  const headers =
    bytes.length > MAX_NAME
      ? [...entry("name", "x", record("path", bytes), 0o644), header("file", "0", data.length, mode)]
      : [header(name, "0", data.length, mode)];
  return Buffer.concat([...headers, padded(data), Buffer.alloc(2 * BLOCK)]);
}

function entry(name: string, type: string, data: Buffer, mode: number): Buffer[] {
  return [header(name, type, data.length, mode), padded(data)];
}

/** Returns a header (POSIX.1-1988, "ustar"). */
function header(name: string, type: string, size: number, mode: number): Buffer {
  const block = Buffer.alloc(BLOCK);
  block.write(name, 0);
  block.write(octal(mode, 7), 100);
  block.write(octal(0, 7), 108);
  block.write(octal(0, 7), 116);
  block.write(octal(size, 11), 124);
  block.write(octal(Math.floor(Date.now() / 1000), 11), 136);
  block.write("        ", 148);
  block.write(type, 156);
  block.write("ustar\u000000", 257);
  block.write(`${octal(block.reduce((sum, byte) => sum + byte, 0), 6)}\0 `, 148);
  return block;
}

function octal(number: number, digits: number): string {
  return number.toString(8).padStart(digits, "0");
}

/** Returns a record of an extended header: its length in decimal digits, which count, too. */
function record(key: string, value: Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), value, Buffer.from("\n")]);
  let length = rest.length;
  while (String(length).length + rest.length !== length) {
    length = String(length).length + rest.length;
  }
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

function padded(data: Buffer): Buffer {
  return Buffer.concat([data, Buffer.alloc((BLOCK - (data.length % BLOCK)) % BLOCK)]);
}

/** Returns the content of the first entry, which must be a file of at most this many bytes. */
export function unpack(archive: Buffer, path: string, maxBytes: number): Buffer {
  let at = 0;
  let size: number | null = null;
  while (at + BLOCK <= archive.length) {
    const block = archive.subarray(at, at + BLOCK);
    const type = String.fromCharCode(block[156] ?? 0);
    const length: number = size ?? number(block.subarray(124, 136));
    at += BLOCK;
    if (type === "S") {
      return filled(archive, block, at, path, maxBytes);
    }
    if (type === "0" || type === "\0" || type === "7") {
      if (length > maxBytes) {
        throw new OutputTooLargeError(path, maxBytes);
      }
      return piece(archive, at, length);
    }
    // Extended headers: a long name, or a size that has no room.
    if (type === "x") {
      size = sizeIn(piece(archive, at, length)) ?? size;
    } else if (type !== "g" && type !== "L" && type !== "K") {
      throw new NotAFileError(path);
    }
    at += Math.ceil(length / BLOCK) * BLOCK;
  }
  throw damaged();
}

/** Returns a file with holes (old GNU format): its header lists the parts that are no holes, and more blocks may follow it. */
function filled(archive: Buffer, header: Buffer, begin: number, path: string, maxBytes: number): Buffer {
  const size = number(header.subarray(483, 495));
  if (size > maxBytes) {
    throw new OutputTooLargeError(path, maxBytes);
  }
  const content = Buffer.alloc(size);
  const parts: [number, number][] = [];
  const add = (table: Buffer): void => {
    for (let place = 0; place + 24 <= table.length; place += 24) {
      parts.push([number(table.subarray(place, place + 12)), number(table.subarray(place + 12, place + 24))]);
    }
  };
  add(header.subarray(386, 482));
  let at = begin;
  for (let hasMore = header[482] === 1; hasMore; at += BLOCK) {
    const block = piece(archive, at, BLOCK);
    add(block.subarray(0, 504));
    hasMore = block[504] === 1;
  }
  for (const [offset, length] of parts) {
    if (offset + length > size) {
      throw damaged();
    }
    piece(archive, at, length).copy(content, offset);
    at += length;
  }
  return content;
}

function piece(archive: Buffer, at: number, length: number): Buffer {
  if (at + length > archive.length) {
    throw damaged();
  }
  return archive.subarray(at, at + length);
}

function damaged(): UnexpectedReplyError {
  return new UnexpectedReplyError("banger wrote an archive that cannot be read.");
}

/** Returns a number in octal digits, or in base 256 (GNU). */
function number(field: Buffer): number {
  if (((field[0] ?? 0) & 0x80) !== 0) {
    return field.subarray(1).reduce((sum, byte) => sum * 256 + byte, 0);
  }
  return Number.parseInt(field.toString("latin1").replace(/[\0 ].*$/s, "") || "0", 8);
}

function sizeIn(records: Buffer): number | null {
  const found = /(?:^|\n)\d+ size=(\d+)\n/.exec(records.toString("latin1"));
  return found?.[1] === undefined ? null : Number(found[1]);
}
