// The slider along the confidence-area curve: each step is a mask found, on the photograph.
(() => {
  const { label, points, found } = JSON.parse(document.getElementById("curve-data").textContent);
  const part = (name) => document.getElementById(`curve-${name}`);
  const slider = part("slider");
  // areas by their logarithm, from the smallest mask to the whole photograph
  const least = Math.log(points[0].area);
  const x = (p) => 30 + 262 * (1 - Math.log(p.area) / least);
  const y = (p) => 92 - 84 * p.confidence;
  // the curve: at an area, the highest confidence of any mask so small
  let best = 0;
  const path = points.map((p, i) => {
    best = Math.max(best, p.confidence);
    return `${i ? "H" : "M"}${x(p)}${i ? "V" : ","}${y({ confidence: best })}`;
  });
  part("path").setAttribute("d", path.join(""));
  const percent = (share) => `${(100 * share).toPrecision(share < 0.1 ? 2 : 3)} %`;
  const show = () => {
    const i = Number(slider.value);
    const p = points[i];
    part("mask").src = p.mask;
    part("dot").setAttribute("cx", x(p));
    part("dot").setAttribute("cy", y(p));
    const other = p.says === label ? "" : `; the network says “${p.says}”`;
    const which = i === found ? " This is the explanation found." : "";
    slider.setAttribute("aria-valuetext", `${percent(p.area)} of the pixels`);
    part("words").textContent =
      `${percent(p.area)} of the pixels: “${label}” with confidence ` +
      `${p.confidence.toFixed(2)}${other}. On noise, ${Math.round(100 * p.noise)} % keep it.${which}`;
  };
  slider.max = points.length - 1;
  slider.value = found;
  slider.oninput = show;
  show();
})();
