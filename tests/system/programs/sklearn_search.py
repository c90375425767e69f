"""A grid search of scikit-learn's, whose fits run on the cluster."""

import joblib
from dask.distributed import Client
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if __name__ == "__main__":
    client = Client()
    x, y = make_classification(n_samples=300, n_features=12, random_state=3)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    search = GridSearchCV(model, {"logisticregression__C": [0.01, 0.1, 1.0, 10.0]}, cv=3)
    with joblib.parallel_config(backend="dask", scatter=[x, y]):
        search.fit(x, y)
    print(search.best_params_, round(search.best_score_, 6))
    print([round(float(s), 6) for s in search.cv_results_["mean_test_score"]])
