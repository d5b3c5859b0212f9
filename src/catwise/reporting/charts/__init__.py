"""Charts of records: what is drawn (chart), as SVG (svg) or by matplotlib (figure).

chart.py      a chart: axes, series, texts beside; no pixel yet
pixels.py     numbers of pixels
marks.py      the same as marks at pixels: what SVG and the page's script draw
svg.py        marks as SVG
figure.py     the same chart as a matplotlib figure
changes.py    records of every kind as one list of changes
gains.py      forests of categories
curves.py     PR, ROC, reliability, distributions of scores
progress.py   learning curves, the memorisation gap, what is known of labels
"""
