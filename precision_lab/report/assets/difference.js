// The absolute difference of two pictures in steps of 8 bits, as the figures have it.
(() => {
  "use strict";

  /** A value of a pixel over a grey level; halves are rounded to even, as NumPy does. */
  function over(value, alpha, background) {
    const mixed = (alpha / 255) * value + (1 - alpha / 255) * background;
    const below = Math.floor(mixed);
    const rest = mixed - below;
    return rest > 0.5 || (rest === 0.5 && below % 2) ? below + 1 : below;
  }

  /**
   * |a - b| for each colour of each pixel, with its maximum, mean and the share of pixels that differ; null where sizes
   * differ. Of pictures with alpha, the larger of the differences over white and over black.
   */
  function difference(a, b) {
    if (a.width !== b.width || a.height !== b.height) return null;
    const pixels = a.width * a.height;
    const data = new Uint8Array(3 * pixels);
    let max = 0;
    let sum = 0;
    let changed = 0;
    for (let pixel = 0; pixel < pixels; pixel++) {
      const alphaA = a.channels === 4 ? a.data[4 * pixel + 3] : 255;
      const alphaB = b.channels === 4 ? b.data[4 * pixel + 3] : 255;
      let differs = 0;
      for (let colour = 0; colour < 3; colour++) {
        const valueA = a.data[a.channels * pixel + colour];
        const valueB = b.data[b.channels * pixel + colour];
        const delta = distance(valueA, alphaA, valueB, alphaB);
        data[3 * pixel + colour] = delta;
        sum += delta;
        if (delta > max) max = delta;
        differs |= delta;
      }
      if (differs) changed++;
    }
    return { width: a.width, height: a.height, data, max, mean: sum / (3 * pixels), changed: changed / pixels };
  }

  function distance(a, alphaA, b, alphaB) {
    if (alphaA === 255 && alphaB === 255) return Math.abs(a - b);
    const onWhite = Math.abs(over(a, alphaA, 255) - over(b, alphaB, 255));
    return Math.max(onWhite, Math.abs(over(a, alphaA, 0) - over(b, alphaB, 0)));
  }

  /** Draws a difference, each value times `gain` and at most 255. */
  function drawDifference(canvas, found, gain) {
    canvas.width = found.width;
    canvas.height = found.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const image = context.createImageData(found.width, found.height);
    for (let pixel = 0; pixel < found.width * found.height; pixel++) {
      for (let colour = 0; colour < 3; colour++) {
        image.data[4 * pixel + colour] = Math.min(255, gain * found.data[3 * pixel + colour]);
      }
      image.data[4 * pixel + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }

  Object.assign(lab, { difference, drawDifference });
})();
