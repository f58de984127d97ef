// The pixels of a PNG, exact: a canvas premultiplies by alpha, and some browsers add noise to what is read from one.
(() => {
  "use strict";

  /** Pixels of an 8-bit RGB or RGBA PNG that is not interlaced, from its data URI: {width, height, channels, data}. */
  async function readPng(uri) {
    const bytes = Uint8Array.from(atob(uri.slice(uri.indexOf(",") + 1)), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const width = view.getUint32(16);
    const height = view.getUint32(20);
    const [depth, colour, , , interlaced] = bytes.subarray(24, 29);
    if (depth !== 8 || (colour !== 2 && colour !== 6) || interlaced) throw new Error("not a PNG of a run");
    const channels = colour === 6 ? 4 : 3;
    const packed = [];
    for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at)) {
      const isData = String.fromCharCode(...bytes.subarray(at + 4, at + 8)) === "IDAT";
      if (isData) packed.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
    }
    const stream = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
    const lines = new Uint8Array(await new Response(stream).arrayBuffer());
    return { width, height, channels, data: unfiltered(lines, width * channels, height, channels) };
  }

  /** Bytes of all rows: each byte of `lines` is a difference to a prediction, chosen by the first byte of its row. */
  function unfiltered(lines, length, height, channels) {
    const data = new Uint8Array(length * height);
    for (let y = 0; y < height; y++) {
      const filter = lines[y * (length + 1)];
      const from = y * (length + 1) + 1;
      const to = y * length;
      for (let x = 0; x < length; x++) {
        const left = x >= channels ? data[to + x - channels] : 0;
        const up = y ? data[to + x - length] : 0;
        const corner = x >= channels && y ? data[to + x - length - channels] : 0;
        data[to + x] = lines[from + x] + predicted(filter, left, up, corner);
      }
    }
    return data;
  }

  function predicted(filter, left, up, corner) {
    if (filter < 3) return [0, left, up][filter];
    if (filter === 3) return (left + up) >> 1;
    const toLeft = Math.abs(up - corner);
    const toUp = Math.abs(left - corner);
    const toCorner = Math.abs(left + up - 2 * corner);
    if (toLeft <= toUp && toLeft <= toCorner) return left;
    return toUp <= toCorner ? up : corner;
  }

  lab.readPng = readPng;
})();
