"""How near texts are: the scale of cosines, and clusters of texts in several languages.

Prints the quantiles of the cosines of customer requests of different intents, the median cosine of translations, and
how far eight clusters agree with intents and with languages (adjusted Rand index: 0 by chance, 1 at best).
"""

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skminilm import MiniLMEncoder
from skminilm.datasets import load_support_requests

requests = load_support_requests()
vectors = MiniLMEncoder().transform(requests.data)

# All vectors have much in common: without it cosines spread around 0.
centring = make_pipeline(MiniLMEncoder(), StandardScaler(with_std=False), Normalizer())
centred = centring.fit_transform(requests.data)

# A part of what they have in common is the language.
languages = requests.languages
by_language = vectors.copy()
for language in np.unique(languages):
    by_language[languages == language] -= vectors[languages == language].mean(axis=0)
by_language = Normalizer().fit_transform(by_language)

is_unrelated = requests.target[:, None] != requests.target
is_translation = (requests.groups[:, None] == requests.groups) & (languages[:, None] != languages)
print("                different intents     translations  clusters and")
print("               1 %    50 %    99 %            50 %  intents  languages")
for name, points in (("as they are", vectors), ("centred", centred), ("by language", by_language)):
    cosines = points @ points.T
    low, middle, high = np.quantile(cosines[is_unrelated], [0.01, 0.5, 0.99])
    near = np.median(cosines[is_translation])
    clusters = KMeans(8, n_init=10, random_state=0).fit_predict(points)
    scores = [adjusted_rand_score(truth, clusters) for truth in (requests.target, languages)]
    print(
        f"{name:12} {low:5.2f}   {middle:5.2f}   {high:5.2f}           {near:5.2f}  {scores[0]:7.2f}  {scores[1]:9.2f}"
    )
